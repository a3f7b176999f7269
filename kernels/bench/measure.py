"""Times on a GPU, what they are held against, and tables of them."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import Part, Row, Time

from edgemm.device import Device, Event, Stream
from edgemm.kernels.compile import compile_kernel

HERE = Path(__file__).parent
WARM_UP, ROUNDS = 30, 300
BURST = 20
"""Rounds that are put into the stream behind one delay: a driver holds about a thousand launches, and a round of a peer
may be twenty of them."""
LONGEST_DELAY_US = 200_000.0
CLOCK_MHZ = 2000.0
"""Taken for the delay where nvidia-smi does not tell the clock; a slower one makes the delay longer: no harm."""
Work = Callable[[Any], None]
"""Puts one round of work into a stream."""


class Copy(ctypes.Structure):
    """The parameters of floor.cu."""

    _fields_ = (("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("count", ctypes.c_longlong))


def first_line(error: BaseException) -> str:
    """An exception in one line of a report."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]


def summary(times_us: Sequence[float]) -> Time:
    """Median and 99th percentile."""
    return Time(float(np.median(times_us)), float(np.percentile(times_us, 99)))


def floor(
    moved_bytes: float, flops: float, *, launch_us: float, bytes_per_us: float, flops_per_us: float
) -> tuple[float, str]:
    """The least time for so much work, in microseconds, and which of the three decides; 0 flops a us: not known."""
    candidates = {"launch": launch_us, "bytes": moved_bytes / bytes_per_us}
    if flops_per_us:
        candidates["flops"] = flops / flops_per_us
    name = max(candidates, key=lambda key: candidates[key])
    return candidates[name], name


class Bench:
    """Measures on one device and one stream, and puts rows and what was missing into a part of the report.

    Time is the device's, between two events. The rounds wait in the stream behind a delay until a burst of them has
    been put there: else a short kernel's time would be that of the Python which starts it. What that takes is
    measured by itself (`host_us`). Caches are as the round before left them, for every candidate alike.
    """

    def __init__(self, device: Device, part: Part, *, deadline: float = float("inf"), small: bool = False) -> None:
        self.device = device
        self.part = part
        self.deadline = deadline
        self.warm_up, self.rounds = (1, 3) if small else (WARM_UP, ROUNDS)
        self.stream: Stream = device.stream()
        self._floor = device.load_module(compile_kernel(HERE / "floor.cu", device.arch).read_bytes())
        self._marks: list[tuple[Event, Event]] = [(device.event(), device.event()) for _ in range(BURST)]
        clock = self._clock_mhz()
        self._delay_mhz = clock or CLOCK_MHZ
        self.launch_us = self.time(self._nothing)[0].median_us
        self.bytes_per_us = self._copy_rate(1 << 16 if small else 1 << 28)
        # 128 lanes a multiprocessor, two operations each, at the highest clock that is told
        self.flops_per_us = device.info.multiprocessors * 256.0 * clock
        part.calibration = {
            "launch_us": self.launch_us,
            "bytes_per_us": self.bytes_per_us,
            "flops_per_us": self.flops_per_us,
            "warm_up": self.warm_up,
            "rounds": self.rounds,
        }

    def optional(self, name: str, why: str) -> Any:
        """The module, or None and a line among what is missing."""
        try:
            return importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a peer that does not load is a line of the report, whatever ails it
            self.part.lacks(f"{name} ({first_line(error)}): {why}")
            return None

    def case(self, name: str, body: Callable[[], None]) -> None:
        """Measure a case, unless it has been measured or time is up, and save."""
        started = time.monotonic()
        if started > self.deadline and name not in self.part.done:
            self.part.left.append(name)
            return
        if not self.part.begin(name):
            return
        body()
        self.part.finish(name, time.monotonic() - started)

    def add(
        self,
        case: str,
        candidate: str,
        work: Work,
        *,
        moved_bytes: float,
        flops: float,
        graph: Callable[[], Work] | None = None,
    ) -> bool:
        """Measure `work` in the stream, and again in a graph: ours, or the one that `graph` makes. False: it failed."""
        floor_us, floor_of = floor(
            moved_bytes,
            flops,
            launch_us=self.launch_us,
            bytes_per_us=self.bytes_per_us,
            flops_per_us=self.flops_per_us,
        )
        try:
            in_stream, host_us, note = self.time(work)
        except Exception as error:  # noqa: BLE001 - as above
            self.part.lacks(f"{candidate} for {case}: {first_line(error)}")
            return False
        in_graph = None
        try:
            in_graph = self.time(graph())[0] if graph else self._time_graph(work)
        except Exception as error:  # noqa: BLE001 - as above
            note = "; ".join(filter(None, (note, f"no graph: {first_line(error)[:80]}")))
        self.part.rows.append(Row(case, candidate, in_stream, in_graph, host_us, floor_us, floor_of, moved_bytes, note))
        shown = f"{in_stream.median_us:.1f}/{in_stream.p99_us:.1f} us"
        in_graph_shown = f"{in_graph.median_us:.1f} us in a graph" if in_graph else "no graph"
        print(f"{case:45} {candidate:28} {shown:18} {in_graph_shown:22} floor {floor_us:.1f} ({floor_of})", flush=True)
        return True

    def agrees(self, name: str, found: Any, exact: Any, tolerance: float) -> None:
        """Note a candidate that computes something else: its time is then of something else, too."""
        worst = float(np.max(np.abs(np.asarray(found, np.float64) - np.asarray(exact, np.float64)), initial=0.0))
        if not worst < tolerance:
            self.part.lacks(f"agreement of {name} with float64: {worst:.2e} off, {tolerance:.0e} allowed")

    def time(self, work: Work) -> tuple[Time, float, str]:
        """Device time of a round, microseconds of the host to start one, and a note where the host was the slower."""
        for _ in range(self.warm_up):
            work(self.stream)
        self.stream.synchronize()
        started = time.perf_counter_ns()
        work(self.stream)
        host_us = (time.perf_counter_ns() - started) / 1e3
        self.stream.synchronize()
        times: list[float] = []
        hosts: list[float] = []
        late = 0
        while len(times) < self.rounds:
            marks = self._marks[: min(BURST, self.rounds - len(times))]
            delay_us = min(len(marks) * (2.0 * host_us + 20.0) + 100.0, LONGEST_DELAY_US)
            self._delay(delay_us)
            started = time.perf_counter_ns()
            for before, after in marks:
                before.record(self.stream)
                at = time.perf_counter_ns()
                work(self.stream)
                hosts.append((time.perf_counter_ns() - at) / 1e3)
                after.record(self.stream)
            late += (time.perf_counter_ns() - started) / 1e3 > delay_us
            times += [1e3 * after.milliseconds_since(before) for before, after in marks]
            host_us = max(host_us, float(np.median(hosts)))
        bursts = -(-self.rounds // BURST)
        note = f"the host was slower than the delay in {late} of {bursts} bursts" if late > bursts // 10 else ""
        return summary(times), float(np.median(hosts)), note

    def _time_graph(self, work: Work) -> Time:
        with self.device.capture(self.stream) as graph:
            work(self.stream)
        try:
            return self.time(graph.launch)[0]
        finally:
            graph.close()

    def _nothing(self, stream: Any) -> None:
        self._floor.launch("bench_nothing", Copy(), grid=(1,), block=(32,), stream=stream)

    def _delay(self, us: float) -> None:
        params = Copy(count=int(us * self._delay_mhz))
        self._floor.launch("bench_delay", params, grid=(1,), block=(1,), stream=self.stream)

    def _copy_rate(self, size: int) -> float:
        """Bytes read and written in a microsecond by a plain copy of `size` bytes."""
        source, target = (self.device.empty((size,), np.uint8) for _ in range(2))
        self.device.fill(source.pointer, 1, size)
        params = Copy(source.pointer, target.pointer, size // 16)
        grid = (self.device.info.multiprocessors * 8,)
        measured, _, _ = self.time(
            lambda stream: self._floor.launch("bench_copy", params, grid=grid, block=(256,), stream=stream)
        )
        source.close()
        target.close()
        return 2 * size / measured.median_us

    def _clock_mhz(self) -> float:
        """The highest clock of the multiprocessors, or 0."""
        program = shutil.which("nvidia-smi")
        if program is None:
            self.part.lacks("nvidia-smi: the floor by operations needs the clock; floors are by bytes and launches")
            return 0.0
        command = [program, "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            return float(done.stdout.split()[0])
        except (IndexError, ValueError):
            self.part.lacks("a clock from nvidia-smi: floors are by bytes and launches")
            return 0.0
