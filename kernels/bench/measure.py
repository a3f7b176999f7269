"""Times on a GPU, what they are held against, and tables of them."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.device import Device, Stream
from edgemm.errors import EdgemmError
from edgemm.kernels.compile import compile_kernel

HERE = Path(__file__).parent
WARM_UP, ROUNDS = 30, 300
Work = Callable[[Any], None]
"""Puts one round of work into a stream."""


@dataclass(frozen=True)
class Time:
    """Device time of one round in microseconds, between two events."""

    median_us: float
    p99_us: float


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    case: str
    candidate: str
    stream: Time | None
    graph: Time | None
    floor_us: float
    floor_of: str
    moved_bytes: float
    note: str = ""


class Copy(ctypes.Structure):
    """The parameters of floor.cu."""

    _fields_ = (("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("count", ctypes.c_longlong))


class Bench:
    """Measures on one device and one stream, and collects rows and what was missing."""

    def __init__(self, device: Device, *, small: bool = False) -> None:
        self.device = device
        self.warm_up, self.rounds = (1, 3) if small else (WARM_UP, ROUNDS)
        self.stream: Stream = device.stream()
        self.rows: list[Row] = []
        self.missing: list[str] = []
        self._floor = device.load_module(compile_kernel(HERE / "floor.cu", device.arch).read_bytes())
        self.launch_us = self._time(self._nothing).median_us
        self.bytes_per_us = self._copy_rate(1 << 16 if small else 1 << 28)
        self.flops_per_us = self._peak()

    def optional(self, name: str, why: str) -> Any:
        """The module, or None and a line among what is missing."""
        try:
            return importlib.import_module(name)
        except ImportError as error:
            self.lacks(f"{name} ({error}): {why}")
            return None

    def lacks(self, what: str) -> None:
        """Note what could not be measured, once."""
        if what not in self.missing:
            self.missing.append(what)
            print(f"missing: {what}", flush=True)

    def floor(self, moved_bytes: float, flops: float) -> tuple[float, str]:
        """The least time for so much work, in microseconds, and which of the three decides."""
        candidates = {"launch": self.launch_us, "bytes": moved_bytes / self.bytes_per_us}
        if self.flops_per_us:
            candidates["flops"] = flops / self.flops_per_us
        name = max(candidates, key=lambda key: candidates[key])
        return candidates[name], name

    def add(
        self, case: str, candidate: str, work: Work, *, moved_bytes: float, flops: float, graph: Work | None = None
    ) -> None:
        """Measure `work` in the stream, and again in a graph (ours, or `graph` for work that brings its own)."""
        floor_us, floor_of = self.floor(moved_bytes, flops)
        try:
            in_stream = self._time(work)
        except (EdgemmError, RuntimeError) as error:  # a peer's own errors are RuntimeErrors
            self.lacks(f"{candidate} for {case}: {str(error).splitlines()[0]}")
            return
        in_graph, note = None, ""
        try:
            in_graph = self._time(graph) if graph else self._time_graph(work)
        except (EdgemmError, RuntimeError) as error:
            note = f"no graph: {str(error).splitlines()[0][:80]}"
        self.rows.append(Row(case, candidate, in_stream, in_graph, floor_us, floor_of, moved_bytes, note))
        shown = f"{in_stream.median_us:.1f}/{in_stream.p99_us:.1f} us"
        print(f"{case:45} {candidate:28} {shown:18} floor {floor_us:.1f} ({floor_of})", flush=True)

    def times(self, case: str) -> dict[str, Time]:
        """The candidates' times in the stream."""
        return {row.candidate: row.stream for row in self.rows if row.case == case and row.stream}

    def cases(self, start: str) -> list[str]:
        """The cases whose names start so, in order."""
        return list(dict.fromkeys(row.case for row in self.rows if row.case.startswith(start)))

    def _time(self, work: Work) -> Time:
        for _ in range(self.warm_up):
            work(self.stream)
        self.stream.synchronize()
        times = []
        before, after = self.device.event(), self.device.event()
        for _ in range(self.rounds):
            before.record(self.stream)
            work(self.stream)
            after.record(self.stream)
            times.append(1e3 * after.milliseconds_since(before))
        before.close()
        after.close()
        return Time(statistics.median(times), float(np.percentile(times, 99)))

    def _time_graph(self, work: Work) -> Time:
        with self.device.capture(self.stream) as graph:
            work(self.stream)
        try:
            return self._time(graph.launch)
        finally:
            graph.close()

    def _nothing(self, stream: Any) -> None:
        self._floor.launch("bench_nothing", Copy(), grid=(1,), block=(32,), stream=stream)

    def _copy_rate(self, size: int) -> float:
        """Bytes read and written in a microsecond by a plain copy of `size` bytes."""
        source, target = (self.device.empty((size,), np.uint8) for _ in range(2))
        self.device.fill(source.pointer, 1, size)
        params = Copy(source.pointer, target.pointer, size // 16)
        grid = (self.device.info.multiprocessors * 8,)
        time = self._time(
            lambda stream: self._floor.launch("bench_copy", params, grid=grid, block=(256,), stream=stream)
        )
        source.close()
        target.close()
        return 2 * size / time.median_us

    def _peak(self) -> float:
        """float32 operations in a microsecond: 128 lanes, two operations each, at the highest clock that is told."""
        program = shutil.which("nvidia-smi")
        if program is None:
            self.lacks("nvidia-smi: the floor by operations needs the clock; floors are by bytes and launches")
            return 0.0
        command = [program, "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            return self.device.info.multiprocessors * 256.0 * float(done.stdout.split()[0])
        except (IndexError, ValueError):
            self.lacks("a clock from nvidia-smi: floors are by bytes and launches")
            return 0.0

    def report(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "device": asdict(self.device.info),
            "backend": self.device.backend,
            "warm_up": self.warm_up,
            "rounds": self.rounds,
            "launch_us": self.launch_us,
            "copy_gb_per_s": self.bytes_per_us / 1e3,
            "rows": [asdict(row) for row in self.rows],
            "missing": self.missing,
        }


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""

    def shown(time: Time | None) -> str:
        return f"{time.median_us:.1f} / {time.p99_us:.1f}" if time else "-"

    lines = [
        "| case | candidate | stream, us p50/p99 | graph, us p50/p99 | floor, us | of | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.case, row.candidate, shown(row.stream), shown(row.graph), f"{row.floor_us:.2f}", row.floor_of]
        lines.append("| " + " | ".join([*cells, row.note]) + " |")
    return "\n".join(lines)
