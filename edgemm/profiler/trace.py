"""A trace that Perfetto and chrome://tracing open: the Trace Event Format, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgemm.errors import SinkError
from edgemm.stream.spans import Span


def to_events(spans: Iterable[Span]) -> list[dict[str, Any]]:
    """Turn spans into complete ("X") events, one track for each model or stream and stage; times in microseconds.

    Queueing overlaps with everything, so that each stage has a track of its own.
    """
    ordered = sorted(spans, key=lambda span: (span.begin_ns, -span.end_ns))
    origin = ordered[0].begin_ns if ordered else 0
    names = sorted({f"{span.model}: {span.stage}" for span in ordered})
    tracks = {name: number for number, name in enumerate(names, 1)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "edgemm"}},
        *(
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}}
            for name, number in tracks.items()
        ),
    ]
    events += [
        {
            "ph": "X",
            "name": span.stage,
            "cat": "edgemm",
            "pid": 1,
            "tid": tracks[f"{span.model}: {span.stage}"],
            "ts": (span.begin_ns - origin) / 1000,
            "dur": (span.end_ns - span.begin_ns) / 1000,
            "args": {"step": span.step},
        }
        for span in ordered
    ]
    return events


def write(path: Path, spans: Iterable[Span]) -> None:
    """Write the trace to `path`. Raises SinkError."""
    document = {"displayTimeUnit": "ns", "traceEvents": to_events(spans)}
    try:
        path.write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        raise SinkError(f"Cannot write the trace {path}: {error.strerror}.") from error
