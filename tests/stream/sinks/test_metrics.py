"""What Prometheus would read, by its own parser."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sample_results import result

from edgemm import recipe as recipes
from edgemm.errors import MissingExtraError, SinkError
from edgemm.stream.accounting import ModelAccount, SinkAccount, StreamAccount
from edgemm.stream.drift import ClockReport
from edgemm.stream.results import Latency
from edgemm.stream.sinks import metrics
from edgemm.stream.sinks.metrics import MetricsSink
from edgemm.stream.sinks.protocol import Run, Snapshot

pytestmark = pytest.mark.real_time

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
RECIPE = recipes.load(Path(__file__).parents[3] / "calibration" / "av_digits" / "recipe.toml")


def scrape(sink: MetricsSink, path: str = "/metrics") -> tuple[Samples, dict[str, str]]:
    """Every sample by name and labels, and the type of every family."""
    host, _, port = sink.url.removeprefix("http://").partition("/")[0].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Type", "").startswith("text/plain")
    samples: Samples = {}
    types = {}
    for family in text_string_to_metric_families(answer.read().decode()):
        types[family.name] = family.type
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    connection.close()
    return samples, types


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


BOOKS = Snapshot(
    {"mic": StreamAccount(10, 7, {"queue_full": 2}, 1, 3), "camera": StreamAccount(4, 4)},
    {"av": ModelAccount(9, 6, {"filling": 1, "late": 2}, 0, {"gate": 5}, 2)},
    {"mic": ClockReport(-25.0, 0.5, 2), "camera": ClockReport(None, 1.0)},
    {"jsonl r.jsonl": SinkAccount(6, 5, {"queue_full": 1})},
)


def test_what_prometheus_reads() -> None:
    said: list[str] = []
    with MetricsSink(":0", announce=said.append) as sink:
        assert said == [sink.url]
        assert sink.url.startswith("http://127.0.0.1:")
        assert sink.name == f"metrics {sink.url[7:-8]}"
        sink.begin(Run(RECIPE, (), frozenset(), "wall"))
        before, _ = scrape(sink)
        assert of(before, "edgemm_results_total", model="av") == 0
        assert of(before, "edgemm_info", version="0.1.0") == 1
        sink.write(result(1, latency=Latency(0, 100_000, 0, 0, 2_000_000, 0, 2_100_000)))
        sink.write(result(2, deadline_missed=True, in_sync=False, skew_ns=-60_000_000, audio_age_ns=None))
        sink.look(BOOKS)
        now, types = scrape(sink, "/")
    assert of(now, "edgemm_results_total", model="av") == 2
    assert of(now, "edgemm_deadline_misses_total", model="av") == 1
    assert of(now, "edgemm_out_of_sync_results_total", model="av") == 1
    assert of(now, "edgemm_skew_seconds", model="av") == -0.06
    assert of(now, "edgemm_result_age_seconds_count", model="av", of="audio") == 1
    assert of(now, "edgemm_result_age_seconds_count", model="av", of="video") == 2
    assert of(now, "edgemm_result_age_seconds_sum", model="av", of="video") == pytest.approx(0.043)
    assert of(now, "edgemm_result_age_seconds_bucket", model="av", of="video", le="0.02") == 0
    assert of(now, "edgemm_result_age_seconds_bucket", model="av", of="video", le="0.03") == 2
    assert of(now, "edgemm_latency_seconds_sum", model="av", stage="inference") == pytest.approx(0.002)
    assert of(now, "edgemm_latency_seconds_count", model="av", stage="total") == 1
    assert of(now, "edgemm_frames_captured_total", stream="mic") == 10
    assert of(now, "edgemm_frames_used_total", stream="mic") == 7
    assert of(now, "edgemm_frames_dropped_total", stream="mic", cause="queue_full") == 2
    assert of(now, "edgemm_frames_in_flight", stream="mic") == 1
    assert of(now, "edgemm_discontinuities_total", stream="mic") == 3
    assert of(now, "edgemm_steps_due_total", model="av") == 9
    assert of(now, "edgemm_steps_skipped_total", model="av", cause="late") == 2
    assert of(now, "edgemm_state_resets_total", model="av", cause="gate") == 5
    assert of(now, "edgemm_sink_results_total", sink="jsonl r.jsonl") == 6
    assert of(now, "edgemm_sink_dropped_total", sink="jsonl r.jsonl", cause="queue_full") == 1
    assert of(now, "edgemm_clock_drift_ratio", stream="mic") == pytest.approx(-25e-6)
    assert of(now, "edgemm_clock_drift_ratio", stream="camera") is None  # not known yet
    assert of(now, "edgemm_clock_jitter_seconds", stream="camera") == 0.001
    assert of(now, "edgemm_source_reconnects_total", stream="mic") == 2
    assert types["edgemm_frames_captured"] == "counter"
    assert types["edgemm_latency_seconds"] == "histogram"


def test_names_follow_the_conventions() -> None:
    # https://prometheus.io/docs/practices/naming/: one prefix, base units, counters end in _total.
    with MetricsSink(":0") as sink:
        sink.begin(Run(RECIPE, (), frozenset(), "wall"))
        sink.write(result(1, latency=Latency(0, 0, 0, 0, 0, 0, 1)))
        sink.look(BOOKS)
        samples, types = scrape(sink)
    assert all(name.startswith("edgemm_") and name == name.lower() for name, _ in samples)
    assert not any(unit in name for name, _ in samples for unit in ("_ms", "_ns", "_ppm", "milli"))
    for name, kind in types.items():
        if kind == "counter":
            assert any(sample == f"{name}_total" for sample, _ in samples), name


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/metrics", "evil.example", 403),
        ("/x", "localhost", 404),
        ("/", "localhost", 200),
        ("/metrics?a=b", "[::1]", 200),
    ],
)
def test_only_loopback_names_and_only_one_page(path: str, host: str, status: int) -> None:
    with MetricsSink(":0") as sink:
        where = sink.url.removeprefix("http://").removesuffix("/metrics")
        connection = http.client.HTTPConnection(where, timeout=5)
        connection.request("GET", path, headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_elsewhere_any_name_will_do() -> None:
    with MetricsSink("0.0.0.0:0") as sink:
        port = sink.url.removesuffix("/metrics").rpartition(":")[2]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Host": "edge-7.example"})
        assert urllib.request.urlopen(request, timeout=5).status == 200


def test_a_connection_that_says_nothing_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SCRAPE_S", 0.2)
    with MetricsSink(":0") as sink:
        host, port = sink.url.removeprefix("http://").removesuffix("/metrics").split(":")
        with socket.create_connection((host, int(port))) as silent:
            scrape(sink)
            silent.settimeout(5)
            assert silent.recv(100) == b""  # closed


def test_scrapes_while_results_come() -> None:
    with MetricsSink(":0") as sink:
        stop = threading.Event()

        def write() -> None:
            step = 0
            while not stop.is_set():
                step += 1
                sink.write(result(step, latency=Latency(0, 0, 0, 0, 0, 0, 1)))
                sink.look(BOOKS)
                time.sleep(0.0005)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            counts = [of(scrape(sink)[0], "edgemm_results_total", model="av") or 0 for _ in range(10)]
        finally:
            stop.set()
            writer.join()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_a_port_in_use() -> None:
    with MetricsSink(":0") as sink:
        where = sink.url.removeprefix("http://").removesuffix("/metrics")
        with pytest.raises(SinkError) as caught, MetricsSink(where):
            pass
    assert str(caught.value) == (
        f"--metrics cannot listen on {where}: the port is in use. Choose another, or 0 for a free one."
    )


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6 on this machine")
def test_ipv6() -> None:
    with MetricsSink("[::1]:0") as sink:
        assert urllib.request.urlopen(sink.url, timeout=5).status == 200


def test_without_the_library_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgemm\[metrics\]"'):
        MetricsSink(":0")
