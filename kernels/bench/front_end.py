"""Log-mel on the device against torchaudio (eager, compiled, in a graph) and CuPy with cuFFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import Bench, Work
from results import Row, cases, times

from edgemm.kernels.launch import CudaRunner
from edgemm.kernels.log_mel import mel_filterbank, window
from edgemm.kernels.log_mel_cuda import LogMelKernel, features_reference
from edgemm.options import LogMelOptions

# What torchaudio's MelSpectrogram can do too: centred, no pre-emphasis, no mean taken off.
OPTIONS = LogMelOptions(
    window="hann",
    window_periodic=True,
    remove_dc=False,
    preemphasis=0.0,
    mel_scale="htk",
    edges="reflect",
    low_hz=0.0,
    floor=1e-10,
)
AIM_BATCH, AIM_HOP_US = 5.0, 8.0
TOLERANCE = 5e-3
"""In the logarithm: float32 spectra of noise, in the weakest band."""
HOP = "log-mel, a hop of 10 ms"


def work_of(frames: int) -> tuple[float, float]:
    """Bytes and operations of so many frames: samples once, bands once; 23 kflop a frame (FFT, power, bands, log)."""
    return frames * 4.0 * (OPTIONS.hop_samples + OPTIONS.n_mels), frames * 23e3


@dataclass(frozen=True)
class Peer:
    """A candidate to compare with."""

    name: str
    work: Work
    graph: Callable[[], Work] | None
    """Makes the work as a graph; None: ours can capture it."""
    result: Callable[[], Any]
    """What the last round has made, on the host."""


def run(bench: Bench, *, small: bool = False) -> None:
    """Measure batches, and one hop of 10 ms."""
    runner = CudaRunner(bench.device)
    runner.prepare("log_mel")
    bench.case(HOP, lambda: measure_hop(bench, runner))
    for signals in (1, 2) if small else (1, 8, 64):
        for seconds in (1,) if small else (1, 10, 30):
            case = f"log-mel {signals} x {seconds} s"
            bench.case(
                case, lambda case=case, shape=(signals, 16000 * seconds): measure_batch(bench, runner, case, shape)
            )


def measure_batch(bench: Bench, runner: CudaRunner, case: str, shape: tuple[int, int]) -> None:
    """Ours and the peers on the same samples, each compared with float64."""
    device = bench.device
    samples = (np.random.default_rng(0).standard_normal(shape) * 0.1).astype(np.float32)
    kernel = LogMelKernel(OPTIONS, runner)
    frames = kernel.frame_count(shape[1])
    given, out = device.upload(samples), device.empty((shape[0], frames, OPTIONS.n_mels), np.float32)
    moved, flops = work_of(shape[0] * frames)
    reference = features_reference(samples[0, :16000], OPTIONS)[:90]  # away from the cut
    if bench.add(case, "edgemm", lambda stream: kernel(given, out, stream=stream), moved_bytes=moved, flops=flops):
        bench.agrees(f"edgemm for {case}", out.download()[0, :90], reference, TOLERANCE)
    for peer in (*torchaudio(bench, samples), *cupy(bench, samples)):
        if bench.add(case, peer.name, peer.work, moved_bytes=moved, flops=flops, graph=peer.graph):
            bench.agrees(f"{peer.name} for {case}", peer.result()[0, :90], reference, TOLERANCE)
    given.close()
    out.close()


def measure_hop(bench: Bench, runner: CudaRunner) -> None:
    """The microphone's stream: 160 samples in, whatever frames they complete out; and torchaudio on one window."""
    device = bench.device
    microphone = LogMelKernel(LogMelOptions(), runner).open_stream(1, 160)
    chunk = device.pinned((1, 160), np.float32)
    out = device.empty((1, microphone.max_frames, 80), np.float32)
    counts = device.empty((1,), np.int32)
    moved, flops = work_of(1)
    bench.add(
        HOP,
        "edgemm stream",
        lambda stream: microphone.push(chunk, out, counts, stream=stream),
        moved_bytes=moved,
        flops=flops,
    )
    window_of_one_frame = np.random.default_rng(0).standard_normal((1, OPTIONS.fft_size)).astype(np.float32)
    for peer in (
        *torchaudio(bench, window_of_one_frame, center=False),
        *cupy(bench, window_of_one_frame, center=False),
    ):
        bench.add(HOP, peer.name, peer.work, moved_bytes=moved, flops=flops, graph=peer.graph)


def figures(rows: Sequence[Row], bytes_per_us: float) -> list[str]:
    """How the fastest torchaudio compares in a batch, and what a hop takes in a graph."""
    lines = []
    for case in cases(rows, "log-mel"):
        found = times(rows, case)
        peers = [time.median_us for name, time in found.items() if name.startswith("torchaudio")]
        graphs = [
            row.graph.median_us for row in rows if row.case == case and row.graph and "torchaudio" in row.candidate
        ]
        if peers and "edgemm" in found:
            ratio = min(peers + graphs) / found["edgemm"].median_us
            lines.append(f"{case}: {ratio:.1f}x the fastest torchaudio; aim {AIM_BATCH:.0f}x")
    for row in rows:
        if row.candidate == "edgemm stream" and row.graph:
            lines.append(f"{row.case}: {row.graph.median_us:.1f} us in a graph; aim below {AIM_HOP_US:.0f} us")
    return lines


def torchaudio(bench: Bench, samples: Any, *, center: bool = True) -> Iterator[Peer]:
    """Eager and compiled, each also in torch's own graph."""
    torch = bench.optional("torch", "pip install torch torchaudio, for the peers of the front end and attention")
    audio = bench.optional("torchaudio", "pip install torchaudio") if torch else None
    if not audio:
        return
    transform = audio.transforms.MelSpectrogram(
        sample_rate=OPTIONS.rate_hz,
        n_fft=OPTIONS.fft_size,
        win_length=OPTIONS.window_samples,
        hop_length=OPTIONS.hop_samples,
        n_mels=OPTIONS.n_mels,
        f_min=OPTIONS.low_hz,
        mel_scale="htk",
        norm=None,
        center=center,
    ).cuda()
    given = torch.from_numpy(samples).cuda()
    held: dict[str, Any] = {}

    def function(x: Any) -> Any:
        return torch.log(torch.clamp(transform(x), min=OPTIONS.floor))

    for name, callee in (("torchaudio", function), ("torchaudio, compiled", compiled(torch, function))):

        def work(stream: Any, callee: Any = callee) -> None:
            with on(torch, stream), torch.no_grad():
                held["out"] = callee(given)

        yield Peer(
            name,
            work,
            lambda callee=callee: torch_graph(torch, callee, given),
            lambda: held["out"].transpose(1, 2).cpu().numpy(),
        )


def compiled(torch: Any, function: Any) -> Any:
    """The function, compiled for these shapes alone: what was compiled before counts against torch's limit of variants,
    beyond which it runs eagerly without a word."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def on(torch: Any, stream: Any) -> Any:
    """A context in which torch puts its work into our stream."""
    return torch.cuda.stream(torch.cuda.ExternalStream(stream.handle))


def torch_graph(torch: Any, function: Any, *given: Any) -> Work:
    """A replay of `function` as torch captures it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            function(*given)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        function(*given)

    def replay(stream: Any) -> None:
        with on(torch, stream):
            graph.replay()

    return replay


def cupy(bench: Bench, samples: Any, *, center: bool = True) -> Iterator[Peer]:
    """Frames as a strided view, cuFFT, a matrix product with the bands."""
    cp = bench.optional("cupy", "pip install cupy-cuda13x, for cuFFT")
    if cp is None:
        return
    size, hop = OPTIONS.fft_size, OPTIONS.hop_samples
    padded = cp.asarray(samples)
    if center:
        padded = cp.pad(padded, ((0, 0), (size // 2, size // 2)), mode="reflect")
    offset = (size - OPTIONS.window_samples) // 2
    shape = np.zeros(size)
    shape[offset : offset + OPTIONS.window_samples] = window(OPTIONS)
    weights, bands = cp.asarray(shape, cp.float32), cp.asarray(mel_filterbank(OPTIONS).T, cp.float32)
    count = 1 + (padded.shape[1] - size) // hop
    step = padded.strides
    frames = cp.lib.stride_tricks.as_strided(padded, (len(samples), count, size), (step[0], hop * step[1], step[1]))
    held: dict[str, Any] = {}

    def work(stream: Any) -> None:
        with cp.cuda.ExternalStream(stream.handle):
            power = cp.abs(cp.fft.rfft(frames * weights, axis=2)) ** 2
            held["out"] = cp.log(cp.maximum(power.astype(cp.float32) @ bands, OPTIONS.floor))

    yield Peer("CuPy (cuFFT)", work, None, lambda: cp.asnumpy(held["out"]))
