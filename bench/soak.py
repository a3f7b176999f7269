"""A session in real time with a fault every twenty seconds: is anything lost without a cause, does anything grow?

    python bench/soak.py --minutes 60 [--output bench/results/soak.md]

The demo runs on a microphone (PulseAudio's, through PortAudio) and a camera (MJPEG over TCP from a process of its own),
and writes JSON Lines. In turn

    camera killed       its process is killed, and back 3 s later; its clock starts from zero
    camera garbage      2 s of packets that are no pictures
    camera stalled      its process is stopped for 4 s
    camera clock        its timestamps jump by an hour
    microphone killed   the sound server is killed, and back 3 s later
    engine slow         each inference takes 0.4 s longer, for 5 s
    sink stalled        writing one result takes 4 s

At the end: the accounts (the run itself raises an error if they do not balance), the frames that the sources gave
against those in the accounts, the results written against the steps made, the steps due against the time that passed;
the memory's slope (Theil-Sen, over the means of 10 s), threads and open files after the warm-up. Exit code 1 if one of
them fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

HOME = ROOT / "calibration" / "av_digits"
HOP_S = 0.1
DEADLINE_S = 0.2
FAULT_EVERY_S = 20.0
BACK_S = 3.0
RECOVERY_S = 5.0
"""A result on fresh sound and pictures must come this soon after a fault is over: 2 s to reconnect, 0.3 s of pictures
thrown away, and a second of sound to fill the window."""
WARM_UP = 0.15
"""Share of the run that is not judged: pools fill, every fault has happened once."""
SLOPE_MB_H = 1.0
GROWTH_MB = 10.0
"""Of runs too short for a slope, last quarter's median over the first's: decoders and sound libraries come and go with
every reconnection, and take and give back about 8 MB in the course of minutes."""
SLOPE_FROM_MIN = 30.0


def camera(port: int) -> None:
    """The camera's process: serves moving pictures to one viewer after another; "garbage" and "step" on its input."""
    import av

    orders: list[str] = []
    threading.Thread(target=lambda: [orders.append(line.strip()) for line in sys.stdin], daemon=True).start()
    gradient = np.add.outer(np.arange(240), np.arange(320)).astype(np.uint16)
    begin, step_ms, garbage_until = time.monotonic(), 0, 0.0
    while True:
        try:
            output = av.open(f"tcp://127.0.0.1:{port}?listen=1", "w", format="nut", options={"flush_packets": "1"})
            stream = output.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            output.start_encoding()
            number = int((time.monotonic() - begin) * 25)
            while True:
                number += 1
                time.sleep(max(0, begin + number / 25 - time.monotonic()))
                while orders:
                    if orders.pop() == "step":
                        step_ms += 3_600_000
                    else:
                        garbage_until = time.monotonic() + 2
                picture = (gradient + number * 3).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuvj420p")
                frame.pts, frame.time_base = number * 40 + step_ms, Fraction(1, 1000)
                packets = stream.encode(frame)
                if time.monotonic() < garbage_until:
                    broken = av.Packet(os.urandom(3000))
                    broken.stream, broken.time_base = stream, Fraction(1, 1000)
                    broken.pts = broken.dts = number * 40 + step_ms
                    packets = [broken]
                output.mux(packets)
        except (av.FFmpegError, OSError):
            time.sleep(0.05)


class Camera:
    """The camera's process, from outside."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, __file__, "--camera-on-port", str(self._port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process = None

    def tell(self, order: str) -> None:
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)


class Counted:
    """A live source whose events are counted on their way out."""

    live = True

    def __init__(self, inner) -> None:
        self._inner = inner
        self.frames = 0

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    # `LiveSource` is checked at run time, which does not see what __getattr__ gives.
    def start(self, clock) -> None:
        self._inner.start(clock)

    def stop(self) -> None:
        self._inner.stop()

    def report(self):
        return self._inner.report()

    @property
    def streams(self):
        return self._inner.streams

    def __enter__(self):
        self._inner.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._inner.__exit__(*error)

    def __iter__(self) -> Iterator:
        from edgemm.stream.frames import End, Lost

        for event in self._inner:
            yield event
            # Reached when the next one is asked for: this one was taken.
            if not isinstance(event, End):
                self.frames += event.count if isinstance(event, Lost) else 1


class Watch:
    """A sink that keeps when results came and whether they rested on fresh sound and pictures; it can be stalled."""

    def __init__(self, capacity: int) -> None:
        self.made_s = np.full(capacity, -1.0)  # written now, so that filling them does not count as growth
        self.fresh = np.full(capacity, 2, np.int8)
        self.count = 0
        self.unsaid = 0
        """Results older than the deadline that do not say so."""
        self.stall_s = 0.0
        self.began_s = time.monotonic()

    def __enter__(self):
        self.began_s = time.monotonic()
        return self

    def __exit__(self, *error) -> None:
        pass

    def write(self, result) -> None:
        stall_s, self.stall_s = self.stall_s, 0.0
        time.sleep(stall_s)
        ages = (result.audio_age_ns, result.video_age_ns)
        self.made_s[self.count] = time.monotonic()
        self.fresh[self.count] = all(age is not None and age < (DEADLINE_S + 0.1) * 1e9 for age in ages)
        self.count += 1
        self.unsaid += (result.made_ns - result.time_ns > DEADLINE_S * 1e9) != result.deadline_missed


class Meter(threading.Thread):
    """Samples this process's memory, threads and open files once a second."""

    def __init__(self, capacity: int) -> None:
        super().__init__(daemon=True)
        self.samples = np.full((capacity, 4), -1.0)
        self.count = 0
        self.done = threading.Event()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.done.wait(1.0) and self.count < len(self.samples):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            threads = len(os.listdir("/proc/self/task"))
            self.samples[self.count] = (time.monotonic(), resident / 1e6, threads, len(os.listdir("/proc/self/fd")) - 1)
            self.count += 1


@dataclass
class Fault:
    """One that happened: when it began and when it was over."""

    kind: str
    begin_s: float
    end_s: float


class Faults(threading.Thread):
    """Injects one fault after the other."""

    def __init__(self, kinds: dict[str, Callable[[], None]], every_s: float, until_s: float) -> None:
        super().__init__(daemon=True)
        self._kinds = kinds
        self._every_s = every_s
        self._until_s = until_s
        self.done: list[Fault] = []
        self.error: Exception | None = None

    def run(self) -> None:
        begin_s = time.monotonic()
        number = 0
        # The last one leaves time to recover.
        while (number + 1) * self._every_s < self._until_s - RECOVERY_S - BACK_S:
            time.sleep(max(0, begin_s + (number + 0.5) * self._every_s - time.monotonic()))
            kind = list(self._kinds)[number % len(self._kinds)]
            at_s = time.monotonic()
            try:
                self._kinds[kind]()
            except Exception as error:  # noqa: BLE001 - reported at the end, by the main thread
                self.error = error
                return
            self.done.append(Fault(kind, at_s, time.monotonic()))
            number += 1


def slope_mb_h(times_s: np.ndarray, values: np.ndarray) -> float:
    """Theil-Sen over the means of 10 s: the median of the slopes between all pairs."""
    bins = ((times_s - times_s[0]) // 10).astype(int)
    t = np.array([times_s[bins == b].mean() for b in np.unique(bins)])
    v = np.array([values[bins == b].mean() for b in np.unique(bins)])
    i, j = np.triu_indices(len(t), 1)
    return float(np.median((v[j] - v[i]) / (t[j] - t[i]))) * 3600


def soak(minutes: float, every_s: float) -> tuple[list[str], list[str]]:
    """Run; returns the report's lines and what failed."""
    from sound_server import sound_server

    import edgemm
    from edgemm.stream.sinks.jsonl import JsonLinesSink
    from edgemm.stream.sources.camera import open_camera
    from edgemm.stream.sources.microphone import MicrophoneSource
    from edgemm.stream.sources.protocol import AudioWant, VideoWant

    seconds = minutes * 60
    port = 20000 + random.SystemRandom().randrange(20000)
    eye = Camera(port)
    slow_until = [0.0]

    def slow_engine(model: str, feeds) -> None:
        if time.monotonic() < slow_until[0]:
            time.sleep(0.4)

    with sound_server() as server, tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "demo.edgemm"
        edgemm.build(HOME / "recipe.toml", bundle, precision="fp32")
        watch = Watch(int(seconds * 12) + 100)

        def kill_camera() -> None:
            eye.kill()
            time.sleep(BACK_S)
            eye.start()

        def stop_camera() -> None:
            eye.signal(signal.SIGSTOP)
            time.sleep(4)
            eye.signal(signal.SIGCONT)

        def garbage() -> None:
            eye.tell("garbage")
            time.sleep(2)

        def kill_microphone() -> None:
            server.kill()
            time.sleep(BACK_S)
            server.start()

        def slow() -> None:
            slow_until[0] = time.monotonic() + 5
            time.sleep(5)

        def stall() -> None:
            watch.stall_s = 4.0
            time.sleep(4.2)

        faults = Faults(
            {
                "camera killed": kill_camera,
                "camera garbage": garbage,
                "microphone killed": kill_microphone,
                "engine slow": slow,
                "camera clock": lambda: eye.tell("step"),
                "sink stalled": stall,
                "camera stalled": stop_camera,
            },
            every_s,
            seconds,
        )
        meter = Meter(int(seconds) + 60)
        lines = Path(folder) / "results.jsonl"
        eye.start()
        try:
            microphone = Counted(MicrophoneSource(AudioWant("mic")))
            eyes = Counted(open_camera(f"tcp://127.0.0.1:{port}", VideoWant("camera", "gray")))
            time.sleep(2)  # the camera's process starts
            meter.start()
            faults.start()
            summary = edgemm.run(
                bundle,
                input={"mic": microphone, "camera": eyes},
                sinks=[JsonLinesSink(lines), watch],
                duration_s=seconds,
                on_feeds=slow_engine,
            )
        finally:
            meter.done.set()
            eye.kill()
        meter.join()
        written = sum(1 for line in lines.read_text().splitlines() if json.loads(line))
    if faults.error is not None:
        raise faults.error
    return report(summary, watch, meter, faults, {"mic": microphone, "camera": eyes}, written, minutes, every_s)


def report(summary, watch, meter, faults, sources, written, minutes, every_s) -> tuple[list[str], list[str]]:
    failed: list[str] = []

    def check(what: str, holds: bool, found: str) -> str:
        if not holds:
            failed.append(f"{what}: {found}")
        return f"| {what} | {found} | {'holds' if holds else '**FAILS**'} |"

    account = summary.models["av"]
    seconds = summary.duration_ns / 1e9
    rows = ["| check | found | |", "|---|---|---|"]
    for name, stream in summary.streams.items():
        dropped = ", ".join(f"{count} {cause}" for cause, count in stream.dropped.items())
        known = stream.used + sum(stream.dropped.values()) + stream.in_flight
        found = f"{stream.captured} captured = {stream.used} used + dropped ({dropped}) + {stream.in_flight} in flight"
        rows.append(check(f"{name}: accounts", known == stream.captured and not stream.in_flight, found))
        rows.append(
            check(
                f"{name}: frames given by the source",
                sources[name].frames == stream.captured,
                f"{sources[name].frames} given, {stream.captured} in the accounts",
            )
        )
    skipped = ", ".join(f"{count} {cause}" for cause, count in account.skipped.items())
    known = account.made + sum(account.skipped.values()) + account.pending
    found = f"{account.due} due = {account.made} made + skipped ({skipped}) + {account.pending} pending"
    rows.append(check("steps: accounts", known == account.due, found))
    expected = seconds / HOP_S
    rows.append(
        check("steps due against time passed", abs(account.due - expected) < 30, f"{account.due} in {seconds:.1f} s")
    )
    rows.append(
        check(
            "results written", written == account.made == watch.count, f"{written} lines for {account.made} steps made"
        )
    )
    rows.append(check("results late without saying so", watch.unsaid == 0, str(watch.unsaid)))

    made_s, fresh = watch.made_s[: watch.count], watch.fresh[: watch.count]
    recovered: dict[str, list[float]] = defaultdict(list)
    for fault in faults.done:
        after = made_s[(made_s > fault.end_s) & (fresh == 1)]
        recovered[fault.kind].append(float(after[0] - fault.end_s) if len(after) else float("inf"))
    worst = max((value for values in recovered.values() for value in values), default=0.0)
    rows.append(
        check("recovery from every fault", worst < RECOVERY_S, f"worst {worst:.2f} s of {len(faults.done)} faults")
    )

    samples = meter.samples[: meter.count]
    settled = samples[int(len(samples) * WARM_UP) :]
    quarter = max(1, len(settled) // 4)
    first, last = np.median(settled[:quarter], axis=0), np.median(settled[-quarter:], axis=0)
    slope = slope_mb_h(settled[:, 0], settled[:, 1])
    growth = last[1] - first[1]
    if minutes >= SLOPE_FROM_MIN:
        rows.append(
            check("memory after warm-up", slope < SLOPE_MB_H, f"{slope:+.2f} MB/h ({first[1]:.1f} to {last[1]:.1f} MB)")
        )
    else:
        rows.append(check("memory after warm-up", growth < GROWTH_MB, f"{first[1]:.1f} to {last[1]:.1f} MB"))
    for name, column in (("threads", 2), ("open files", 3)):
        before, after = settled[:-quarter, column].max(), settled[-quarter:, column].max()
        # Most, not usual: while a camera is away its threads and files are gone, too.
        rows.append(
            check(f"{name}, most until then and in the last quarter", after <= before, f"{before:.0f}, {after:.0f}")
        )
    kinds = Counter(fault.kind for fault in faults.done)
    lines = [
        "# Soak",
        "",
        f"{minutes:g} minutes in real time, a fault every {every_s:g} s; {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, load {os.getloadavg()[2]:.1f} at the end (15 minutes' mean). "
        f"`python bench/soak.py --minutes {minutes:g}`",
        "",
        *rows,
        "",
        "| fault | times | recovery, s: median | worst |",
        "|---|---|---|---|",
        *(f"| {kind} | {kinds[kind]} | {np.median(v):.2f} | {max(v):.2f} |" for kind, v in recovered.items()),
        "",
        "Recovery: from the fault's end to the first result on sound and pictures younger than "
        f"{DEADLINE_S * 1e3 + 100:.0f} ms.",
        "Reconnections: " + ", ".join(f"{name} {clock.reconnects}" for name, clock in summary.clocks.items()) + ". "
        f"Resets of state and windows: mic {summary.streams['mic'].discontinuities}, "
        f"camera {summary.streams['camera'].discontinuities}.",
    ]
    return lines, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--fault-every", type=float, default=FAULT_EVERY_S, metavar="S")
    parser.add_argument("--output", type=Path, help="write the report as Markdown, too")
    parser.add_argument("--camera-on-port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.camera_on_port:
        camera(args.camera_on_port)
        return
    logging.basicConfig(level=logging.ERROR)
    lines, failed = soak(args.minutes, args.fault_every)
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")
    if failed:
        sys.exit("FAILED: " + "; ".join(failed))


if __name__ == "__main__":
    main()
