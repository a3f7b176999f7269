"""Figures of a run for Prometheus: an HTTP server that answers each scrape with the counts until now."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import ThreadingHTTPServer
from types import ModuleType, TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from edgemm import __version__
from edgemm.errors import MissingExtraError
from edgemm.stream.frames import Event
from edgemm.stream.results import Latency, Result
from edgemm.stream.sinks import address
from edgemm.stream.sinks.address import Address, names_loopback
from edgemm.stream.sinks.protocol import Run, Snapshot
from edgemm.stream.sinks.server import cannot_listen

AGE_BUCKETS_S = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Around a deadline of 50 to 500 ms."""

LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""From a window's copy to the slowest inference that still makes sense."""

SCRAPE_S = 5.0
"""A connection that says nothing for so long is closed."""

STAGES = tuple((name, name.removesuffix("_ns")) for name in Latency.__struct_fields__)


class MetricsSink:
    """Listens on `where`, "[HOST]:PORT", and answers GET /metrics in Prometheus' text format.

    Without a host only this machine can ask. With one whoever reaches the port can: there is no token, and no output of
    a model among the figures. `announce` is given the URL once the sink listens.

    Raises UsageError for an address that is none, MissingExtraError without the package prometheus-client, and
    SinkError, when entered, if it cannot listen there.
    """

    never_waits: Literal[True] = True

    def __init__(self, where: str, *, announce: Callable[[str], None] | None = None) -> None:
        self._address = address.parse(where, "--metrics")
        self._announce = announce
        self._library = library = _prometheus()
        self._registry = registry = library.CollectorRegistry()
        counter, gauge, histogram = library.Counter, library.Gauge, library.Histogram
        library.Info("edgemm", "The program.", registry=registry).info({"version": __version__})
        self._results = counter("edgemm_results", "Results made.", ["model"], registry=registry)
        self._missed = counter("edgemm_deadline_misses", "Results made too late.", ["model"], registry=registry)
        self._apart = counter(
            "edgemm_out_of_sync_results",
            "Results whose sound and picture are further apart than the tolerance.",
            ["model"],
            registry=registry,
        )
        self._ages = histogram(
            "edgemm_result_age_seconds",
            "Age of the newest sound (audio) and picture (video) of a result when it was made.",
            ["model", "of"],
            registry=registry,
            buckets=AGE_BUCKETS_S,
        )
        self._latencies = histogram(
            "edgemm_latency_seconds",
            "Time of each stage of a result; wall clock only.",
            ["model", "stage"],
            registry=registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self._skew = gauge(
            "edgemm_skew_seconds",
            "Capture of the newest sound minus that of the newest picture of the last result.",
            ["model"],
            registry=registry,
        )
        registry.register(_Books(self))
        self.books: Snapshot | None = None
        """The newest."""
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """For the accounts."""
        return f"metrics {self._address}"

    @property
    def url(self) -> str:
        """What to scrape."""
        return f"http://{self._address.reachable()}/metrics"

    @property
    def library(self) -> ModuleType:
        """prometheus_client."""
        return self._library

    def __enter__(self) -> MetricsSink:
        handler = _handler(self._library, self._registry, only_loopback=self._address.is_loopback)
        server = _Server6 if ":" in self._address.host else _Server
        try:
            self._server = server((self._address.host, self._address.port), handler)
        except OSError as error:
            raise cannot_listen("--metrics", self._address, error) from error
        self._address = Address(self._address.host, self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="server --metrics", daemon=True
        )
        self._thread.start()
        if self._announce is not None:
            self._announce(self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def begin(self, run: Run) -> None:
        """Show every model from the start, at zero."""
        for model in run.recipe.models:
            self._results.labels(model)
            self._missed.labels(model)
            self._apart.labels(model)

    def event(self, event: Event) -> None:
        """Frames are counted in the books."""

    def look(self, books: Snapshot) -> None:
        """Keep the newest books for the next scrape."""
        self.books = books

    def write(self, result: Result) -> None:
        """Count one result."""
        model = result.model
        self._results.labels(model).inc()
        if result.deadline_missed:
            self._missed.labels(model).inc()
        if result.in_sync is False:
            self._apart.labels(model).inc()
        if result.skew_ns is not None:
            self._skew.labels(model).set(result.skew_ns / 1e9)
        for of, age_ns in (("audio", result.audio_age_ns), ("video", result.video_age_ns)):
            if age_ns is not None:
                self._ages.labels(model, of).observe(age_ns / 1e9)
        if result.latency is not None:
            for (_, stage), stage_ns in zip(STAGES, msgspec.structs.astuple(result.latency), strict=True):
                self._latencies.labels(model, stage).observe(stage_ns / 1e9)


class _Books:
    """The books of a run as metrics, made when they are asked for."""

    def __init__(self, sink: MetricsSink) -> None:
        self._sink = sink
        self._core = sink.library.core

    def collect(self) -> Iterable[Any]:
        books = self._sink.books
        if books is None:
            return
        streams, models, sinks, clocks = books.streams, books.models, books.sinks, books.clocks
        yield self._counter(
            "frames_captured", "Frames that came.", "stream", {n: a.captured for n, a in streams.items()}
        )
        yield self._counter("frames_used", "Frames that a step saw.", "stream", {n: a.used for n, a in streams.items()})
        yield self._causes(
            "frames_dropped", "Frames no step saw.", "stream", {n: a.dropped for n, a in streams.items()}
        )
        yield self._gauge(
            "frames_in_flight",
            "Frames neither used nor dropped yet.",
            "stream",
            {n: a.in_flight for n, a in streams.items()},
        )
        yield self._counter(
            "discontinuities", "Gaps in a stream.", "stream", {n: a.discontinuities for n, a in streams.items()}
        )
        yield self._counter("steps_due", "Steps that fell due.", "model", {n: a.due for n, a in models.items()})
        yield self._causes("steps_skipped", "Steps not made.", "model", {n: a.skipped for n, a in models.items()})
        yield self._causes(
            "state_resets", "Resets of a model's state.", "model", {n: a.resets for n, a in models.items()}
        )
        yield self._counter("sink_results", "Results given to a sink.", "sink", {n: a.taken for n, a in sinks.items()})
        yield self._causes(
            "sink_dropped", "Results that a sink lost.", "sink", {n: a.dropped for n, a in sinks.items()}
        )
        drifts = {n: c.drift_ppm / 1e6 for n, c in clocks.items() if c.drift_ppm is not None}
        yield self._gauge("clock_drift_ratio", "How much faster a live source's clock runs.", "stream", drifts)
        yield self._gauge(
            "clock_jitter_seconds",
            "Scatter of its timestamps.",
            "stream",
            {n: c.jitter_ms / 1e3 for n, c in clocks.items()},
        )
        yield self._counter(
            "source_reconnects", "Returns of a live source.", "stream", {n: c.reconnects for n, c in clocks.items()}
        )

    def _counter(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Any:
        family = self._core.CounterMetricFamily(f"edgemm_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    def _causes(self, name: str, text: str, label: str, values: Mapping[str, Mapping[str, int]]) -> Any:
        family = self._core.CounterMetricFamily(f"edgemm_{name}", text, labels=[label, "cause"])
        for key, causes in values.items():
            for cause, count in causes.items():
                family.add_metric([key, cause], count)
        return family

    def _gauge(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Any:
        family = self._core.GaugeMetricFamily(f"edgemm_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


def _handler(library: ModuleType, registry: Any, *, only_loopback: bool) -> Any:
    base: Any = library.MetricsHandler

    class Handler(base):  # type: ignore[misc]
        timeout = SCRAPE_S

        def do_GET(self) -> None:
            if only_loopback and not names_loopback(self.headers.get("Host")):
                self.send_error(403, "a name that is not loopback's is refused")
            elif urlsplit(self.path).path not in ("/", "/metrics"):
                self.send_error(404, "the figures are at /metrics")
            else:
                super().do_GET()

    Handler.registry = registry
    return Handler


def _prometheus() -> ModuleType:
    try:
        import prometheus_client.core
    except ImportError as error:
        raise MissingExtraError("--metrics", "metrics", "prometheus_client") from error
    return prometheus_client
