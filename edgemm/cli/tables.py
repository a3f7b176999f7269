"""Tables for the terminal: plain text, so that they can be piped, compared and pasted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgemm.profiler.percentiles import trusted

if TYPE_CHECKING:
    from edgemm.builder import BuildReport
    from edgemm.profiler.percentiles import Percentiles
    from edgemm.profiler.report import ProfileReport
    from edgemm.simulate import SimulationReport
    from edgemm.stream.results import Summary

_LAYERS_SHOWN = 8


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def build_table(report: BuildReport) -> str:
    """What a build did, for people."""
    lines = []
    for model in report.models:
        lines.append(f"{model.name}: {model.nodes} nodes, opset {model.opset}; calibration: {model.calibration}")
        rows = [
            [
                variant.precision + (" *" if variant.precision == model.precision else ""),
                f"{variant.bytes / 1e6:.2f} MB",
                _number(variant.agreement, ".4f"),
                _number(variant.sqnr_db, ".1f"),
                _number(variant.milliseconds, ".3f"),
                _number(variant.int8_share, ".1%"),
            ]
            for variant in model.variants
        ]
        lines.append(table(["precision", "size", "agreement", "SQNR dB", "ms (p50)", "int8 share"], rows))
        lines.append(f"* chosen: {model.reason}")
        for variant in model.variants:
            lines += [f"{node} stays in float: {why}" for node, why in variant.left_in_float.items()]
        lines += [f"note: {note}" for note in model.notes]
        lines.append("")
    lines += report.plans
    lines.append(f"Wrote {report.path}, {report.bytes / 1e6:.2f} MB, for {report.target}, in {report.seconds:.1f} s.")
    return "\n".join(lines)


def summary_table(summary: Summary) -> str:
    """How a run ended, for people."""
    lines = [
        f"{'Interrupted after' if summary.interrupted else 'Ran'} {summary.duration_ns / 1e9:.1f} s "
        f"on the {summary.clock} clock"
    ]
    rows = [
        [name, str(a.captured), str(a.used), _causes(a.dropped), str(a.in_flight), str(a.discontinuities)]
        for name, a in summary.streams.items()
    ]
    lines.append(table(["stream", "captured", "used", "dropped", "in flight", "gaps"], rows))
    rows = [
        [
            name,
            str(a.due),
            str(a.made),
            _causes(a.skipped),
            str(a.pending),
            str(a.deadlines_missed),
            summary.engines[name],
        ]
        for name, a in summary.models.items()
    ]
    lines.append(table(["model", "due", "made", "skipped", "pending", "late", "engine"], rows))
    for name, account in summary.models.items():
        if account.degraded:
            lines.append(f"{name}: of the steps made, in degraded mode: {_causes(account.degraded)}")
    if summary.clocks:
        rows = [
            [
                name,
                _number(clock.drift_ppm, "+.1f"),
                f"{clock.jitter_ms:.2f}",
                f"{clock.delay_ms:.1f}",
                str(clock.reconnects),
            ]
            for name, clock in summary.clocks.items()
        ]
        lines.append(table(["clock of", "drift ppm", "jitter ms", "delay ms", "reconnects"], rows))
    # The terminal has shown what it got; of others it is good to know.
    rows = [
        [name, str(sink.taken), str(sink.written), _causes(sink.dropped)]
        for name, sink in summary.sinks.items()
        if name != "terminal" or sink.dropped
    ]
    if rows:
        lines.append(table(["sink", "taken", "written", "dropped"], rows))
    return "\n".join(lines)


def simulation_table(report: SimulationReport) -> str:
    """What a simulation found, for people."""
    slower = "" if report.scale == 1 else f", its engine {report.scale:g} times as slow"
    lines = [f"Simulated {report.summary.duration_ns / 1e9:.1f} s on: {report.machine}{slower} ({report.profile})"]
    if not report.same_bundle:
        lines.append("note: the profile was measured on another bundle than this one")
    lines += [f"note: {note}" for note in report.notes]
    rows = []
    for name, found in report.models.items():
        account = report.summary.models[name]
        ages = [_number(None if age is None else age / 1e6, ".1f") for age in (found.age_p50_ns, found.age_p99_ns)]
        if not trusted(99, account.made):
            ages[1] = "-"
        rows.append(
            [
                name,
                str(account.due),
                str(account.made),
                _causes(account.skipped),
                str(sum(account.degraded.values())),
                f"{found.dropped_share:.1%}",
                *ages,
                str(account.deadlines_missed),
                f"{found.busy_share:.1%}",
                found.engine,
            ]
        )
    header = [
        "model",
        "due",
        "made",
        "skipped",
        "degraded",
        "for overload",
        "age ms p50",
        "p99",
        "late",
        "busy",
        "engine profiled",
    ]
    lines.append(table(header, rows))
    rows = [[name, str(a.captured), str(a.used), _causes(a.dropped)] for name, a in report.summary.streams.items()]
    lines.append(table(["stream", "captured", "used", "dropped"], rows))
    return "\n".join(lines)


def profile_table(report: ProfileReport, baseline: ProfileReport | None = None) -> str:
    """Where the time went, for people; with a baseline, ratios of medians (below 1 is faster now)."""
    lines = [f"{report.bundle} on {report.input}; {report.machine}; {report.warm_up} steps of warm-up not counted"]
    header = ["microseconds", "count", "mean", "p50", "p90", "p99", "p99.9", "max"]
    if baseline is not None:
        header.append("p50 / baseline")
        if baseline.machine != report.machine:
            lines.append(f"note: the baseline was measured on another machine: {baseline.machine}")
    rows = []
    for name, stream in report.streams.items():
        old = baseline.streams.get(name) if baseline else None
        for stage, found in stream.stages.items():
            rows.append(_times(f"{name}: {stage}, per frame", found, old.stages.get(stage) if old else None, header))
    for name, model in report.models.items():
        before = baseline.models.get(name) if baseline else None
        for stage, found in model.stages.items():
            rows.append(_times(f"{name}: {stage}", found, before.stages.get(stage) if before else None, header))
        rows.append(_times(f"{name}: step", model.step, before.step if before else None, header))
    lines.append(table(header, rows))
    share = report.accounted_ns / report.total_ns if report.total_ns else 1.0
    lines.append(
        f"measured {report.total_ns / 1e6:.1f} ms in all; stages account for {share:.1%}, "
        f"the rest is scheduling and making results"
    )
    lines.append(
        f"memory: {report.engine_memory_bytes / 1e6:.0f} MB for the engines and one pass, "
        f"{report.peak_memory_bytes / 1e6:.0f} MB at most for the whole process"
    )
    for name, model in report.models.items():
        total = sum(layer.total_ns for layer in model.layers) or 1
        lines.append("")
        lines.append(f"{name}: {model.engine}, {model.precision}; the slowest of {len(model.layers)} layers")
        layer_rows = [
            [layer.name, layer.op, f"{layer.total_ns / layer.calls / 1e3:.1f}", f"{layer.total_ns / total:.1%}"]
            for layer in model.layers[:_LAYERS_SHOWN]
        ]
        lines.append(table(["layer", "op", "us per call", "share"], layer_rows))
    return "\n".join(lines)


def _times(name: str, found: Percentiles, old: Percentiles | None, header: Sequence[str]) -> list[str]:
    # A percentile that too few samples support is not printed: p99.9 of 200 samples is their maximum.
    tail = [
        f"{value / 1e3:.1f}" if trusted(percentile, found.count) else "-"
        for percentile, value in ((99.0, found.p99_ns), (99.9, found.p999_ns))
    ]
    row = [
        name,
        str(found.count),
        f"{found.mean_ns / 1e3:.1f}",
        f"{found.p50_ns / 1e3:.1f}",
        f"{found.p90_ns / 1e3:.1f}",
        *tail,
        f"{found.max_ns / 1e3:.1f}",
    ]
    if len(header) > len(row):
        row.append(f"{found.p50_ns / old.p50_ns:.2f}" if old is not None and old.p50_ns else "-")
    return row


def _causes(counts: object) -> str:
    if not isinstance(counts, dict) or not counts:
        return "0"
    return ", ".join(f"{count} {cause}" for cause, count in counts.items())


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
