"""From glass to result: edgemm against a GStreamer appsink and a plain OpenCV loop, on the same camera and model.

    python bench/pipeline.py [--codec h264] [--seconds 20] [--rounds 3] [--output bench/results/pipeline]

A process of its own is the camera: it draws the machine's monotonic time into each picture as 64 black and white fields
and serves them at once as RTSP (640 x 480, JPEG or H.264, 25 a second, over TCP), as an IP camera does. Whoever takes
part reads that URL, scales to 224 x 224 and runs the same ONNX model on onnxruntime with one thread. Before each
inference the time is read off the very tensor that is fed; the age is from there to when the result is in hand:
drawing, encoding, network, decoding, waiting, scaling and inference. CPU is that of the process. The first three
seconds are not judged.

    edgemm            hop = "1 frames", policy = "latest"; a result is in hand when `edgemm.runner.live` gives it, in
                      the thread that made it, as in the loops of the others
    edgemm-sink       `edgemm.run(bundle, camera=URL, sinks=...)`: in hand when a sink gets it, in a thread of its own
    gstreamer         rtspsrc latency=0, appsink drop=true max-buffers=1 sync=false: all that can be done for low delay
    gstreamer-plain   rtspsrc and appsink as they come: every picture, 2 s of jitter buffer
    opencv            cv2.VideoCapture(URL), read, run, again: the usual script

each on a machine of its own accord (idle), with an engine five times too slow (0.2 s more for each inference, spent
waiting as for a GPU), and beside a busy process for each core (hogs). They take turns, `--rounds` times.

A live run of edgemm asks for the niceness -11, which takes a permission (root has it). Where this process has it, also
beside the hogs:

    edgemm, not permitted    without the permission (setpriv, of util-linux)
    gstreamer, niced         started by `nice -n -11`, which the usual script is not
    opencv, niced

Needs gst-rtsp-server: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gir1.2-gst-plugins-base-1.0
gstreamer1.0-plugins-good, and for H.264 gstreamer1.0-plugins-bad gstreamer1.0-libav
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np

from edgemm.stream.turns import NICENESS

WIDTH, HEIGHT, FPS = 640, 480, 25
SIDE = 224
COLUMNS, ROWS = 8, 8
TICK_NS = 100_000
"""The time in a picture counts these, in 24 bits: it comes around after 28 minutes."""
CHECK_BITS = 40
WARM_UP_S = 3.0
"""Not judged: connecting leaves pictures in buffers, which some of them take long to get rid of."""
SHUTTER_S = 0.004
"""Each picture is up to this much late. A camera's clock knows nothing of the machine's; one that did would meet the
scheduler's tick (4 ms on most) in the same phase throughout a run, and in another in the next."""
SLOW_S = 5 / FPS
MEDIA = "/usr/lib/python3/dist-packages"
"""Where Debian and Ubuntu keep the Python module gi."""
ENCODERS = {
    "jpeg": "jpegenc ! rtpjpegpay",
    "h264": "openh264enc bitrate=2000000 gop-size=25 multi-thread=1 ! rtph264pay config-interval=-1",
}
DECODERS = {"jpeg": "rtpjpegdepay ! jpegdec", "h264": "rtph264depay ! avdec_h264 max-threads=1"}
PIPELINES = {
    "gstreamer": (
        "rtspsrc location={url} protocols=tcp latency=0 ! {decoder} ! videoconvert "
        "! video/x-raw,format=RGB ! appsink name=sink drop=true max-buffers=1 sync=false"
    ),
    "gstreamer-plain": (
        "rtspsrc location={url} ! {decoder} ! videoconvert ! video/x-raw,format=RGB ! appsink name=sink"
    ),
}
STARTED = {
    "": [],
    "niced": ["nice", "-n", str(NICENESS)],
    "not permitted": ["setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice"],
}
RECIPE = f"""
edgemm = 1
name = "pipeline"
precision = "fp32"
[streams.camera]
kind = "video"
fps = {FPS}
[models.eye]
file = "eye.onnx"
hop = "1 frames"
inputs.picture = {{ stream = "camera", image = {{ width = {SIDE}, height = {SIDE} }} }}
outputs.scores = {{ decode = "softmax" }}
"""


# The time in the picture.


def draw(time_ns: int) -> np.ndarray:
    """A gray picture that says `time_ns`: 24 bits of time and 40 of check, bright or dark."""
    ticks = time_ns // TICK_NS % (1 << 24)
    word = ticks << CHECK_BITS | check(ticks)
    bits = np.array([word >> i & 1 for i in range(ROWS * COLUMNS)], np.uint8).reshape(ROWS, COLUMNS)
    return np.kron(np.where(bits == 1, 224, 32).astype(np.uint8), np.ones((HEIGHT // ROWS, WIDTH // COLUMNS), np.uint8))


def read(gray: np.ndarray, now_ns: int) -> int | None:
    """The time that a picture of any size says, None if it says none; `now_ns` is some time soon after it."""
    height, width = gray.shape
    rows = (np.arange(ROWS) * 2 + 1) * height // (2 * ROWS)
    columns = (np.arange(COLUMNS) * 2 + 1) * width // (2 * COLUMNS)
    bright = gray[np.ix_(rows, columns)].ravel() > 0.5
    word = sum(1 << i for i in np.flatnonzero(bright).tolist())
    ticks = word >> CHECK_BITS
    if word & ((1 << CHECK_BITS) - 1) != check(ticks):
        return None
    now = now_ns // TICK_NS
    return (now - (now - ticks) % (1 << 24)) * TICK_NS


def check(ticks: int) -> int:
    """Bits that depend on all of `ticks`."""
    return ticks * 0x9E3779B97F4A7C15 >> 17 & ((1 << CHECK_BITS) - 1)


def camera(port: int, codec: str) -> None:
    """Serve pictures of the time until killed. Prints "ready"."""
    gst, _ = gstreamer()
    import gi

    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, GstRtspServer

    def push(source) -> None:
        # The server holds a picture until its own clock, which starts some milliseconds later, shows the same time.
        begin_ns = time.monotonic_ns() + 30_000_000
        chroma = bytes([128]) * (WIDTH * HEIGHT // 2)
        shutter = random.Random(0)
        refused = 0
        for number in range(1 << 30):
            due_ns = begin_ns + round((number / FPS + shutter.uniform(0, SHUTTER_S)) * 1e9)
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            now_ns = time.monotonic_ns()
            buffer = gst.Buffer.new_wrapped(draw(now_ns).tobytes() + chroma)
            buffer.pts = now_ns - begin_ns
            buffer.duration = gst.SECOND // FPS
            # A camera does not keep what nobody has taken: the queue of appsrc is leaky.
            refused = 0 if source.emit("push-buffer", buffer) == gst.FlowReturn.OK else refused + 1
            if refused == FPS:
                return  # for a second: whoever watched is gone; a single one is a pipeline that is being set up

    def configure(factory, media) -> None:
        source = media.get_element().get_by_name("src")
        threading.Thread(target=push, args=(source,), daemon=True).start()

    server = GstRtspServer.RTSPServer()
    server.set_service(str(port))
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_latency(0)
    factory.set_launch(
        "( appsrc name=src is-live=true format=time max-buffers=1 leaky-type=downstream "
        f"caps=video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate={FPS}/1 "
        f"! {ENCODERS[codec]} name=pay0 pt={26 if codec == 'jpeg' else 96} )"
    )
    factory.connect("media-configure", configure)
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


def gstreamer():
    """Gst and GstApp, from the system's Python where this one has none."""
    try:
        import gi
    except ImportError:
        sys.path.append(MEDIA)
        import gi
    gi.require_version("Gst", "1.0")
    gi.require_version("GstApp", "1.0")
    from gi.repository import Gst, GstApp

    Gst.init(None)
    return Gst, GstApp


# Who takes part.


class Ages:
    """Ages and times of results, and the processor's time from the first one on."""

    def __init__(self, seconds: float, slow_s: float) -> None:
        self._seconds = seconds
        self._slow_s = slow_s
        self._first_s: float | None = None
        self._begin: tuple[float, float] | None = None
        self._end: tuple[float, float] | None = None
        # edgemm hands results to a thread of the sink's own, while the next step is fed.
        self._glass_ns: deque[int | None] = deque()
        self.ages_ms: list[float] = []
        self.unread = 0

    def fed(self, tensor: np.ndarray) -> None:
        """A step is about to run on `tensor`, `[1, 3, side, side]` from 0 to 1."""
        self._glass_ns.append(read(tensor[0, 1], time.monotonic_ns()))
        time.sleep(self._slow_s)

    def made(self) -> bool:
        """Its result is there; returns whether more are wanted."""
        now_ns = time.monotonic_ns()
        glass_ns = self._glass_ns.popleft()
        if self._first_s is None:
            self._first_s = time.monotonic()
        if self._end is not None or time.monotonic() - self._first_s < WARM_UP_S:
            return self._end is None
        if self._begin is None:
            self._begin = time.monotonic(), time.process_time()
        if glass_ns is None:
            self.unread += 1
        else:
            self.ages_ms.append((now_ns - glass_ns) / 1e6)
        if time.monotonic() - self._begin[0] >= self._seconds:
            self._end = time.monotonic(), time.process_time()
        return self._end is None

    def report(self) -> dict:
        if self._end is None:
            sys.exit("The pictures ended before the time was up.")
        wall, cpu = (end - begin for begin, end in zip(self._begin, self._end, strict=True))
        return {
            "ages_ms": self.ages_ms,
            "unread": self.unread,
            "cpu": cpu / wall,
            "per_second": len(self.ages_ms) / wall,
        }


def take_part(who: str, url: str, codec: str, folder: Path, seconds: float, slow_s: float) -> dict:
    """Run one of them and return what its Ages report."""
    ages = Ages(seconds, slow_s)
    if who == "edgemm":
        run_edgemm(url, folder / "eye.edgemm", ages)
        return ages.report()
    if who == "edgemm-sink":
        run_edgemm_sink(url, folder / "eye.edgemm", ages, seconds)
        return ages.report()
    import cv2
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(folder / "eye.onnx", options, providers=["CPUExecutionProvider"])
    description = "" if who == "opencv" else PIPELINES[who].format(url=url, decoder=DECODERS[codec])
    for picture in opencv_pictures(url) if who == "opencv" else gstreamer_pictures(description):
        small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        tensor = np.ascontiguousarray(small.transpose(2, 0, 1), np.float32)[None] / np.float32(255)
        ages.fed(tensor)
        session.run(None, {"picture": tensor})
        if not ages.made():
            break
    return ages.report()


def run_edgemm(url: str, bundle: Path, ages: Ages) -> None:
    """What `edgemm.run` does, up to the results."""
    import edgemm
    from edgemm.inputs import open_sources
    from edgemm.runner import live
    from edgemm.session import Session, open_engines
    from edgemm.stream.clock import WallClock

    opened = edgemm.open(bundle)
    with open_engines(opened) as engines, ExitStack() as stack:
        sources = [stack.enter_context(source) for source in open_sources(opened.recipe, None, camera=url)]
        infos = [info for source in sources for info in source.streams]
        session = Session(
            opened.recipe,
            engines,
            streams=infos,
            clock=WallClock(),
            on_feeds=lambda _, feeds: ages.fed(feeds["picture"]),
        )
        with closing(live(session, sources, None)) as results:
            for _ in results:
                if not ages.made():
                    break


def run_edgemm_sink(url: str, bundle: Path, ages: Ages, seconds: float) -> None:
    import edgemm

    class Sink:
        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            pass

        def write(self, result) -> None:
            ages.made()

    edgemm.run(
        bundle,
        camera=url,
        sinks=[Sink()],
        on_feeds=lambda _, tensors: ages.fed(tensors["picture"]),
        duration_s=WARM_UP_S + seconds + 8,
    )


def gstreamer_pictures(description: str) -> Iterator[np.ndarray]:
    gst, _ = gstreamer()
    pipeline = gst.parse_launch(description)
    sink = pipeline.get_by_name("sink")
    pipeline.set_state(gst.State.PLAYING)
    try:
        while (sample := sink.try_pull_sample(10 * gst.SECOND)) is not None:
            buffer = sample.get_buffer()
            _, data = buffer.map(gst.MapFlags.READ)
            picture = np.frombuffer(data.data, np.uint8).reshape(HEIGHT, WIDTH, 3).copy()
            buffer.unmap(data)
            yield picture
    finally:
        pipeline.set_state(gst.State.NULL)


def opencv_pictures(url: str) -> Iterator[np.ndarray]:
    import cv2

    capture = cv2.VideoCapture(url)
    while True:
        good, picture = capture.read()
        if not good:
            return
        yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


# The comparison.


def write_model(path: Path) -> None:
    """A convolutional network of the usual shape with random weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights, name, channels = [], [], "picture", 3
    for number, (out, stride) in enumerate([(16, 2), (32, 2), (64, 2), (64, 1), (128, 2)]):
        weight = random.normal(0, (2 / (9 * channels)) ** 0.5, (out, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node("Conv", [name, f"w{number}"], [f"c{number}"], strides=[stride] * 2, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        name, channels = f"r{number}", out
    weights.append(numpy_helper.from_array(random.normal(0, 0.1, (channels, 10)).astype(np.float32), "w"))
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "w"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "eye",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def burn() -> None:
    while True:
        pass


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """`count` processes that do nothing but compute."""
    processes = [multiprocessing.get_context("spawn").Process(target=burn, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def may_be_nicer() -> bool:
    """Whether a process started from here may have a smaller niceness than the usual."""
    asked = subprocess.run([*STARTED["niced"], "nice"], capture_output=True, text=True)
    return asked.stdout.strip() == str(NICENESS)


def measure(who: str, codec: str, folder: Path, seconds: float, slow_s: float) -> dict:
    """One turn of one of them, with a camera of its own."""
    who, _, started = who.partition(", ")
    port = free_port()
    command = [sys.executable, __file__, "--codec", codec]
    server = subprocess.Popen([*command, "--serve", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        if server.stdout.readline().strip() != "ready":
            sys.exit("The camera's process did not start: see the packages that `--help` names.")
        command = [*STARTED[started], *command, "--take-part", who, "--url", f"rtsp://127.0.0.1:{port}/camera"]
        command += ["--folder", str(folder), "--seconds", str(seconds), "--slow", str(slow_s)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=seconds * 4 + 60)
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codec", choices=ENCODERS, default="jpeg")
    parser.add_argument("--loads", nargs="+", help='only loads whose names hold one of these words, e.g. "idle"')
    parser.add_argument("--output", type=Path, help="write OUTPUT.md and OUTPUT.json")
    for internal, kind in (
        ("--serve", int),
        ("--take-part", str),
        ("--url", str),
        ("--folder", Path),
        ("--slow", float),
    ):
        parser.add_argument(internal, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return camera(args.serve, args.codec)
    if args.take_part:
        print(json.dumps(take_part(args.take_part, args.url, args.codec, args.folder, args.seconds, args.slow)))
        return None
    import edgemm

    usual = ("edgemm", "edgemm-sink", *PIPELINES, "opencv")
    niced = ("edgemm, not permitted", "gstreamer, niced", "opencv, niced") if may_be_nicer() else ()
    cores = os.cpu_count() or 1
    # How much slower the engine is, and how many hogs there are.
    loads: dict[str, tuple[float, int]] = {
        "idle": (0.0, 0),
        "engine five times too slow": (SLOW_S, 0),
        f"{cores} hogs": (0.0, cores),
    }
    loads = {name: what for name, what in loads.items() if not args.loads or any(word in name for word in args.loads)}
    found: dict[str, dict[str, list[dict]]] = {load: defaultdict(list) for load in loads}
    begun_load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "eye.onnx")
        (folder / "recipe.toml").write_text(RECIPE)
        edgemm.build(folder / "recipe.toml", folder / "eye.edgemm", precision="fp32")
        for number in range(args.rounds):
            for load, (slow_s, count) in loads.items():
                everyone = usual + niced if count else usual
                # Each in another place of the order each time: other work on the machine comes and goes.
                for who in everyone[number % len(everyone) :] + everyone[: number % len(everyone)]:
                    with hogs(count):
                        found[load][who].append(measure(who, args.codec, folder, args.seconds, slow_s))
                    one = found[load][who][-1]
                    p50, p99 = np.percentile(one["ages_ms"], (50, 99))
                    print(f"{load}: {who}: p50 {p50:.1f} p99 {p99:.1f} ms, CPU {one['cpu']:.0%}", flush=True)
    rows = []
    for load, runs in found.items():
        for who, turns in runs.items():
            ages = np.concatenate([turn["ages_ms"] for turn in turns])
            p50, p99 = np.percentile(ages, (50, 99))
            rows.append(
                {
                    "load": load,
                    "who": who,
                    "results": len(ages),
                    "unread": sum(turn["unread"] for turn in turns),
                    "age_ms_p50": round(float(p50), 1),
                    "age_ms_p99": round(float(p99), 1),
                    "age_ms_p99_by_round": [round(float(np.percentile(t["ages_ms"], 99)), 1) for t in turns],
                    "age_ms_max": round(float(ages.max()), 1),
                    "results_per_second": round(float(np.mean([turn["per_second"] for turn in turns])), 1),
                    "cpu_share_of_one_core": round(float(np.mean([turn["cpu"] for turn in turns])), 3),
                }
            )
    machine = (
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}; load before {begun_load:.1f}; "
        f"{args.rounds} rounds of {args.seconds:g} s, in turn"
    )
    command = f"python bench/pipeline.py --codec {args.codec} --seconds {args.seconds:g} --rounds {args.rounds}"
    command += f" --loads {' '.join(args.loads)}" if args.loads else ""
    lines = [
        f"# From glass to result, {args.codec.upper()}",
        "",
        f"{machine}, niceness {os.nice(0)}, a smaller one {'' if niced else 'not '}permitted. `{command}`",
        "",
        "| load | | age ms, p50 | p99 | max | p99 of each round | results/s | CPU |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['load']} | {row['who']} | {row['age_ms_p50']} | {row['age_ms_p99']} | {row['age_ms_max']} "
            f"| {', '.join(map(str, row['age_ms_p99_by_round']))} | {row['results_per_second']} "
            f"| {row['cpu_share_of_one_core']:.0%} |"
            for row in rows
        ),
    ]
    print("\n".join(lines))
    if args.output:
        args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
        report = {"machine": machine, "command": command, "rows": rows}
        args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
