from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_results import result

from edgemm.errors import SinkError
from edgemm.stream.accounting import AccountingError, ModelAccount, SinkAccount, StreamAccount
from edgemm.stream.decode import Score, Values
from edgemm.stream.results import Latency, Summary
from edgemm.stream.sinks.console import ConsoleSink, show
from edgemm.stream.sinks.jsonl import JsonLinesSink
from edgemm.stream.sinks.memory import MemorySink

SUPPORT = str(Path(__file__).parents[2] / "support")


def test_a_result_as_json_has_units_in_its_names_and_leaves_out_what_is_not_there() -> None:
    line = json.loads(result().to_json())
    assert line == {
        "model": "av",
        "step": 1,
        "time_ms": 1100.0,
        "made_ms": 1101.5,
        "outputs": {
            "digit": {"label": "three", "index": 3, "score": 0.75},
            "match": {"score": 0.5, "above": True},
            "face": {"vector": [pytest.approx(0.6), pytest.approx(0.8)]},
            "raw": {"values": [[1.0, None]]},
        },
        "capture_ms": 1080.0,
        "audio_age_ms": 6.5,
        "video_age_ms": 21.5,
        "skew_ms": 15.0,
        "in_sync": True,
        "engine": "fake",
        "deadline_missed": False,
        "skipped": 0,
    }
    blind = json.loads(
        result(
            video_age_ns=None, skew_ns=None, in_sync=None, state_reset="gate", latency=Latency(9, 1, 2, 3, 4, 5, 10**6)
        ).to_json()
    )
    assert "video_age_ms" not in blind
    assert "skew_ms" not in blind
    assert blind["state_reset"] == "gate"
    assert blind["latency_ms"]["total"] == 1.0
    assert list(blind["latency_ms"]) == ["sound", "queue", "front_end", "window", "inference", "decode", "total"]


def test_json_lines_go_out_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with JsonLinesSink(path) as sink:
        for step in range(1, 4):
            sink.write(result(step))
            assert path.read_text().count("\n") == step  # whole lines, at once
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(SinkError, match="Cannot write results to .*: No such file or directory"),
        JsonLinesSink(tmp_path / "none" / "results.jsonl"),
    ):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence() -> None:
    with JsonLinesSink("/dev/full") as sink, pytest.raises(SinkError) as caught:
        sink.write(result())
    assert str(caught.value) == (
        "Cannot write results to /dev/full: No space left on device. The 0 bytes before are whole lines."
    )


def test_a_disk_that_fills_up_keeps_the_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    code = """
import resource, signal, sys
from pathlib import Path
from edgemm.errors import SinkError
from edgemm.stream.sinks.jsonl import JsonLinesSink
from sample_results import result
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
line = len(result().to_json()) + 1
resource.setrlimit(resource.RLIMIT_FSIZE, (3 * line + 50, 3 * line + 50))
with JsonLinesSink(sys.argv[1]) as sink:
    try:
        for step in range(1, 9):
            sink.write(result(step))
    except SinkError as error:
        print(step, error)
"""
    del resource
    path = tmp_path / "results.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SUPPORT},
        check=True,
    )
    assert done.stdout.startswith("4 Cannot write results to")
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_standard_output_and_a_reader_that_has_gone() -> None:
    code = """
import sys
from edgemm.errors import SinkError
from edgemm.stream.sinks.jsonl import JsonLinesSink
from sample_results import result
with JsonLinesSink("-") as sink:
    try:
        for step in range(1, 100000):
            sink.write(result(step))
    except SinkError as error:
        print(error, file=sys.stderr)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SUPPORT},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["step"] == 1
        process.stdout.close()
        assert b"Cannot write results to standard output: Broken pipe" in process.stderr.read()


def test_memory_keeps_results() -> None:
    with MemorySink() as sink:
        sink.write(result(7))
    assert [r.step for r in sink.results] == [7]


def test_the_console_prints_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with ConsoleSink(out) as sink:
        sink.write(result())
    assert out.getvalue() == (
        "    1.100 s  av  digit three (0.75)  match yes (0.50)  face float32[2]  raw float64[1, 2]\n"
    )
    assert show(Score(0.25, False)) == "no (0.25)"
    assert show(Values(np.array([1.5]))) == "1.5"


def test_the_console_shows_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    out = io.StringIO()
    with ConsoleSink(out) as sink:
        sink.write(result())
        sink.write(result(2, deadline_missed=True, latency=Latency(0, 0, 0, 0, 0, 0, 3_000_000), audio_age_ns=None))
    shown = out.getvalue()
    for words in ("audio age ms", "digit three (0.75)", "2 (late)", "21.5", "3.0"):
        assert words in shown


def test_a_summary_says_how_it_ended() -> None:
    summary = Summary(
        clock="wall",
        duration_ns=1_500_000,
        streams={"mic": StreamAccount(3, 2, {"queue_full": 1})},
        models={"av": ModelAccount(1, 1)},
        engines={"av": "fake on Python"},
        sinks={"jsonl": SinkAccount(3, 2, {"queue_full": 1})},
        results=(result(),),
    )
    summary.check()
    written = json.loads(summary.to_json())
    assert written["duration_ms"] == 1.5
    assert written["interrupted"] is False
    assert written["streams"]["mic"]["dropped"] == {"queue_full": 1}
    assert written["sinks"]["jsonl"] == {"taken": 3, "written": 2, "dropped": {"queue_full": 1}, "pending": 0}
    with pytest.raises(AccountingError, match='Sink "jsonl": 4 results taken, but written 2 \\+ dropped 1'):
        SinkAccount(4, 2, {"queue_full": 1}).check("jsonl")
    assert "results" not in written
