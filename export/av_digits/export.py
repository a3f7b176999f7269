"""Write the trained model as ONNX: `python export.py model.pt -o av_digits.onnx`.

Opset 17, batch 1, every shape constant, batch norm folded. Inputs `audio` float32 [1, 40, 100] (normalised log-mel)
and `video` float32 [1, 8, 32, 32] (gray, 0 to 1); outputs `digit` [1, 10] (logits) and `match` [1, 1] (probability).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from model import AvDigits
from torch import Tensor, nn

OPSET = 17


class Exported(nn.Module):
    """The two outputs a user reads: digit logits and the probability of a match."""

    def __init__(self, model: AvDigits) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        digit, match = self.model(audio, video)
        return digit, torch.sigmoid(match)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    model = AvDigits()
    model.load_state_dict(saved["state"])
    wrapped = Exported(model).eval()
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(1, 40, 100, generator=generator)
    video = torch.rand(1, 8, 32, 32, generator=generator)
    torch.onnx.export(
        wrapped,
        (audio, video),
        args.output,
        input_names=["audio", "video"],
        output_names=["digit", "match"],
        opset_version=OPSET,
        dynamo=False,
    )
    proto = onnx.load(args.output)
    proto.doc_string = "Spoken and handwritten digits: which digit, and do sound and picture agree."
    for key, value in (("log_mel_mean", saved["mean"]), ("log_mel_std", saved["std"])):
        proto.metadata_props.add(key=key, value=f"{value:.6f}")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, args.output)

    session = ort.InferenceSession(str(args.output), providers=["CPUExecutionProvider"])
    found = session.run(None, {"audio": audio.numpy(), "video": video.numpy()})
    with torch.no_grad():
        wanted = [t.numpy() for t in wrapped(audio, video)]
    worst = max(float(np.abs(f - w).max()) for f, w in zip(found, wanted, strict=True))
    if worst > 1e-4:
        raise SystemExit(f"onnxruntime and PyTorch differ by {worst:.2e}, expected below 1e-4.")
    ops = sorted({n.op_type for n in proto.graph.node})
    print(f"{args.output}: {args.output.stat().st_size} bytes, differs from PyTorch by {worst:.1e}; {ops}")


if __name__ == "__main__":
    main()
