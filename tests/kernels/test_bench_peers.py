"""The peers of the GPU run, on the CPU: that each computes what ours computes, by the calls that the run makes.

torch is itself, without its streams; numpy stands for CuPy. What needs torchaudio or Triton runs where they are.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from require import require

from edgemm.kernels.frame_prep import frame_prep_reference
from edgemm.kernels.log_mel_cuda import features_reference

os.environ.setdefault("TRITON_INTERPRET", "1")
torch = require("torch", "peers", "pip install torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels" / "bench"))

import attention  # noqa: E402
import frames  # noqa: E402
import front_end  # noqa: E402
from results import Part  # noqa: E402


class NumpyAsCupy:
    """CuPy's interface, as far as the run uses it."""

    cuda = SimpleNamespace(ExternalStream=lambda handle: contextlib.nullcontext())
    asnumpy = staticmethod(np.asarray)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class HostBench:
    """What a peer asks of `measure.Bench`."""

    def __init__(self) -> None:
        self.part = Part(None)
        self.stream = SimpleNamespace(handle=0)

    def optional(self, name: str, why: str) -> Any:
        if name == "cupy":
            return NumpyAsCupy()
        try:
            return __import__(name)
        except (ImportError, OSError):  # torchaudio's library wants the CUDA that torch was built with
            return None


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> HostBench:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(front_end, "on", lambda torch, stream: contextlib.nullcontext())
    monkeypatch.setattr(frames, "on", lambda torch, stream: contextlib.nullcontext())
    monkeypatch.setattr(attention, "on", lambda torch, stream: contextlib.nullcontext())
    # Compiling takes a minute; that torch compiles is torch's to prove.
    monkeypatch.setattr(front_end, "compiled", lambda torch, function: function)
    monkeypatch.setattr(frames, "compiled", lambda torch, function: function)
    return HostBench()


def test_front_ends(bench: HostBench) -> None:
    samples = (np.random.default_rng(0).standard_normal((2, 16000)) * 0.1).astype(np.float32)
    want = features_reference(samples[1], front_end.OPTIONS)
    peers = [*front_end.torchaudio(bench, samples), *front_end.cupy(bench, samples)]
    assert peers[-1].name == "CuPy (cuFFT)"
    for peer in peers:
        peer.work(bench.stream)
        assert np.abs(peer.result()[1] - want).max() < front_end.TOLERANCE, peer.name
    one = samples[:1, : front_end.OPTIONS.fft_size]
    for peer in (*front_end.torchaudio(bench, one, center=False), *front_end.cupy(bench, one, center=False)):
        peer.work(bench.stream)
        assert peer.result().shape == (1, 1, front_end.OPTIONS.n_mels), peer.name


@pytest.mark.parametrize("case", [case for case, _, _ in frames.CASES])
def test_frames(bench: HostBench, case: str) -> None:
    frame, options = next((frame, options) for name, frame, options in frames.CASES if name == case)
    planes = [np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8) for shape in frame.plane_shapes]
    eager, compiled = frames.torch_resize(bench, planes, frame, options)
    assert compiled.name == "torch, compiled (Triton)"
    eager.work(bench.stream)
    found = eager.result()
    want = frame_prep_reference(planes, frame, options)
    assert found.shape == want.shape
    if options.resize == "bilinear":
        assert np.abs(found - want).max() < frames.PEER_TOLERANCE


@pytest.mark.parametrize(
    "shape",
    [
        attention.Shape(64, 64, 32),
        attention.Shape(64, 64, 32, causal=True),
        attention.Shape(70, 90, 64, padded=True),
        attention.Shape(1, 64, 64),
        attention.Shape(100, 50, 128),
    ],
    ids=str,
)
def test_attentions(bench: HostBench, shape: attention.Shape) -> None:
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(attention.BATCH, attention.HEADS, length, shape.head_dim, dtype=torch.float16)
        for length in (shape.queries, shape.keys, shape.keys)
    )
    lengths = torch.tensor(shape.lengths, dtype=torch.int32)
    mask = (torch.arange(shape.keys)[None, :] < lengths[:, None])[:, None, None] if shape.padded else None
    want = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask, is_causal=shape.causal
    )
    found = list(attention.peers(bench, torch, q, k, v, lengths, mask, shape))
    # The CPU has the flash backend only; the others are refused, and that is said.
    assert found[0].name == "torch flash"
    assert any("CUDNN_ATTENTION" in line for line in bench.part.missing)
    for peer in found:
        peer.work(bench.stream)
        worst = float((torch.from_numpy(peer.result()).double() - want).abs().max())
        assert worst < attention.TOLERANCE, peer.name
