"""Writes the front_end_*.onnx files beside it: log-mel features as PyTorch's exporters write them.

    python tests/graph/golden/make_front_end.py

Needs torch (2.13 wrote the files that are here) and onnxscript; the tests need neither. The filterbank is torchaudio's
definition (`melscale_fbanks`, HTK), written anew here.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
RATE, FFT, HOP, BANDS = 16000, 256, 128, 20


def filterbank() -> Tensor:
    """Triangles linear in Hz whose corners are equally spaced in HTK's mel, [bins, bands]."""
    top = 2595.0 * torch.log10(torch.tensor(1.0 + RATE / 2 / 700.0, dtype=torch.float64))
    mel = torch.linspace(0.0, float(top), BANDS + 2, dtype=torch.float64)
    corners = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    bins = torch.linspace(0.0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


class Base(nn.Module):
    """The tables."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FFT))
        self.register_buffer("filters", filterbank())


class Centred(Base):
    """torch.stft with its padding, as in torchaudio's MelSpectrogram and in Whisper: bands before frames, log10."""

    def forward(self, samples: Tensor) -> Tensor:
        spectrum = torch.stft(samples, FFT, HOP, window=self.window, return_complex=True)
        return torch.log10(torch.clamp(self.filters.T @ spectrum.abs().pow(2), min=1e-10))


class Decibels(Base):
    """Real torch.stft of whole frames, the only one that the older exporter takes; decibels, normalised."""

    def forward(self, samples: Tensor) -> Tensor:
        parts = torch.stft(samples, FFT, HOP, window=self.window, center=False, return_complex=False)
        power = parts.pow(2).sum(-1).transpose(1, 2) @ self.filters
        return (10.0 * torch.log10(torch.clamp(power, min=1e-10)) + 40.0) / 20.0


class Frames(Base):
    """torch.fft of frames cut by unfold, of magnitudes."""

    def forward(self, samples: Tensor) -> Tensor:
        frames = samples.unfold(1, FFT, HOP) * self.window
        return torch.log(torch.clamp(torch.fft.rfft(frames).abs() @ self.filters, min=1e-5))


class Offset(Base):
    """log(x + 1e-6), which no LogMelOptions computes."""

    def forward(self, samples: Tensor) -> Tensor:
        parts = torch.stft(samples, FFT, HOP, window=self.window, center=False, return_complex=False)
        return torch.log(parts.pow(2).sum(-1).transpose(1, 2) @ self.filters + 1e-6)


def main() -> None:
    """Export every front end by the newer exporter, and by the older one what it takes."""
    warnings.simplefilter("ignore")
    samples = torch.randn(1, 896)
    cases = (("centred", Centred(), "dynamo"), ("decibels", Decibels(), "script"), ("decibels", Decibels(), "dynamo"))
    for name, module, exporter in (*cases, ("frames", Frames(), "dynamo"), ("offset", Offset(), "dynamo")):
        target = HERE / f"front_end_{name}_{exporter}.onnx"
        torch.onnx.export(
            module,
            (samples,),
            target,
            input_names=["samples"],
            opset_version=18 if exporter == "dynamo" else 17,
            dynamo=exporter == "dynamo",
            external_data=False,
        )
        model = onnx.load(target)
        for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
            item.doc_string = ""
            del item.metadata_props[:]
        onnx.save(model, target)
        print(target.name, target.stat().st_size)  # noqa: T201


if __name__ == "__main__":
    main()
