"""Log-mel on the device against torchaudio (eager, compiled, in a graph) and CuPy with cuFFT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from measure import Bench, Work

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


def work_of(frames: int) -> tuple[float, float]:
    """Bytes and operations of so many frames: samples once, bands once; 23 kflop a frame (FFT, power, bands, log)."""
    return frames * 4.0 * (OPTIONS.hop_samples + OPTIONS.n_mels), frames * 23e3


def run(bench: Bench, *, small: bool = False) -> None:
    """Measure batches, and one hop of 10 ms."""
    device = bench.device
    runner = CudaRunner(device)
    kernel = LogMelKernel(OPTIONS, runner)
    runner.prepare("log_mel")
    random = np.random.default_rng(0)
    for signals in (1, 2) if small else (1, 8, 64):
        for length in (1,) if small else (1, 10, 30):
            samples = (random.standard_normal((signals, 16000 * length)) * 0.1).astype(np.float32)
            frames = kernel.frame_count(samples.shape[1])
            given, out = device.upload(samples), device.empty((signals, frames, OPTIONS.n_mels), np.float32)
            moved, flops = work_of(signals * frames)
            case = f"log-mel {signals} x {length} s"

            def ours(stream: Any, given: Any = given, out: Any = out) -> None:
                kernel(given, out, stream=stream)

            bench.add(case, "edgemm", ours, moved_bytes=moved, flops=flops)
            reference = features_reference(samples[0, :16000], OPTIONS)[:90]  # away from the cut
            check(out.download()[0, :90], reference, bench, "edgemm")
            for name, work, graph, result in (*torchaudio(bench, samples), *cupy(bench, samples)):
                bench.add(case, name, work, moved_bytes=moved, flops=flops, graph=graph)
                check(result()[0, :90], reference, bench, name)
            given.close()
            out.close()
    microphone = LogMelKernel(LogMelOptions(), runner).open_stream(1, 160)
    chunk = device.pinned((1, 160), np.float32)
    out = device.empty((1, microphone.max_frames, 80), np.float32)
    counts = device.empty((1,), np.int32)
    moved, flops = work_of(1)
    bench.add(
        "log-mel, a hop of 10 ms",
        "edgemm stream",
        lambda stream: microphone.push(chunk, out, counts, stream=stream),
        moved_bytes=moved,
        flops=flops,
    )


def figures(bench: Bench) -> list[str]:
    """How the fastest torchaudio compares in a batch, and what a hop takes in a graph."""
    lines = []
    for case in bench.cases("log-mel"):
        rows = bench.times(case)
        peers = [time.median_us for name, time in rows.items() if name.startswith("torchaudio")]
        if peers and "edgemm" in rows:
            ratio = min(peers) / rows["edgemm"].median_us
            lines.append(f"{case}: {ratio:.1f}x torchaudio; aim {AIM_BATCH:.0f}x")
    for row in bench.rows:
        if row.candidate == "edgemm stream" and row.graph:
            lines.append(f"{row.case}: {row.graph.median_us:.1f} us in a graph; aim below {AIM_HOP_US:.0f} us")
    return lines


def check(found: Any, reference: Any, bench: Bench, name: str) -> None:
    """Note a candidate whose features are not those of float64: its time is then of something else."""
    worst = float(np.max(np.abs(found - reference)))
    if not worst < 5e-3:
        bench.lacks(f"agreement of {name} with float64: {worst:.2e} off in the log")


def torchaudio(bench: Bench, samples: Any) -> Iterator[tuple[str, Work, Work | None, Any]]:
    """Eager, compiled, and in torch's own graph."""
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
    ).cuda()
    given = torch.from_numpy(samples).cuda()
    held: dict[str, Any] = {}

    def function(x: Any) -> Any:
        return torch.log(torch.clamp(transform(x), min=OPTIONS.floor))

    for name, callee in (("torchaudio", function), ("torchaudio, compiled", torch.compile(function))):

        def work(stream: Any, callee: Any = callee) -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)), torch.no_grad():
                held["out"] = callee(given)

        graph = torch_graph(torch, callee, given)
        yield name, work, graph, lambda: held["out"].transpose(1, 2).cpu().numpy()


def torch_graph(torch: Any, function: Any, *given: Any) -> Work:
    """A replay of `function` as torch captures it."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            function(*given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        function(*given)

    def replay(stream: Any) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
            graph.replay()

    return replay


def cupy(bench: Bench, samples: Any) -> Iterator[tuple[str, Work, Work | None, Any]]:
    """Frames as a strided view, cuFFT, a matrix product with the bands."""
    cp = bench.optional("cupy", "pip install cupy-cuda13x, for cuFFT")
    if cp is None:
        return
    size, hop = OPTIONS.fft_size, OPTIONS.hop_samples
    padded = cp.pad(cp.asarray(samples), ((0, 0), (size // 2, size // 2)), mode="reflect")
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

    yield "CuPy (cuFFT)", work, None, lambda: cp.asnumpy(held["out"])
