"""How many attentions of real architectures `FuseAttention` finds, and whether the outputs stay.

    pip install torch onnxscript transformers
    python bench/attention_coverage.py

Builds small models with random weights from Hugging Face's classes (nothing is downloaded), exports each with PyTorch's
two exporters, fuses, and compares the outputs of the whole graph in onnxruntime on random inputs. What an exporter
refuses is listed as such.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from edgemm.graph import Model, load, ort
from edgemm.graph.passes import FoldConstants, FuseAttention, InferShapes, run

TEXT = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGE = {
    **{key: value for key, value in TEXT.items() if key != "vocab_size"},
    "image_size": 32,
    "patch_size": 8,
}


class Cached(nn.Module):
    """A model that is stepped: it is handed the keys and values of what came before, layer by layer."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model = model
        self.layers = layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> Tensor:
        cache = transformers.DynamicCache()
        for layer in range(self.layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True
        ).last_hidden_state


class FirstOutput(nn.Module):
    """A model of tensors to one tensor."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *args: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, args, strict=True))).last_hidden_state


def cases() -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Name, model and inputs."""
    t = transformers
    text = {"input_ids": torch.randint(5, 50, (1, 8)), "attention_mask": torch.tensor([[1] * 6 + [0] * 2])}
    picture, sound = {"pixel_values": torch.randn(1, 3, 32, 32)}, {"input_values": torch.randn(1, 400)}
    for kind in ("eager", "sdpa"):
        how = {"attn_implementation": kind}
        yield f"BERT {kind}", t.BertModel(t.BertConfig(**TEXT, **how)), text
        gpt2 = t.GPT2Config(vocab_size=50, n_embd=64, n_layer=1, n_head=2, use_cache=False, **how)
        yield f"GPT-2 {kind}", t.GPT2Model(gpt2), text
        yield f"Llama {kind}", t.LlamaModel(t.LlamaConfig(**TEXT, num_key_value_heads=1, use_cache=False, **how)), text
        yield f"ViT {kind}", t.ViTModel(t.ViTConfig(**IMAGE, **how)), picture
        yield f"CLIP vision {kind}", t.CLIPVisionModel(t.CLIPVisionConfig(**IMAGE, **how)), picture
        whisper = t.WhisperConfig(
            d_model=64, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=20,
            max_source_positions=10, **how,
        )  # fmt: skip
        yield f"Whisper encoder {kind}", WhisperEncoder(whisper), {"input_features": torch.randn(1, 20, 20)}
        wav2vec2 = t.Wav2Vec2Config(
            hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(32,),
            conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2, **how,
        )  # fmt: skip
        yield f"wav2vec 2.0 {kind}", t.Wav2Vec2Model(wav2vec2), sound
    yield (
        "DistilBERT",
        t.DistilBertModel(t.DistilBertConfig(vocab_size=50, dim=64, n_layers=1, n_heads=2, hidden_dim=64)),
        text,
    )
    yield (
        "T5 encoder",
        t.T5EncoderModel(t.T5Config(vocab_size=50, d_model=64, d_kv=32, num_heads=2, d_ff=64, num_layers=1)),
        text,
    )
    swin = t.SwinConfig(image_size=32, patch_size=2, embed_dim=32, depths=[2], num_heads=[1], window_size=4)
    yield "Swin", t.SwinModel(swin), picture


def measure(model: Model, feeds: dict[str, np.ndarray]) -> str:
    """Fuse a model and compare."""
    result = run(run(model, [InferShapes(), FoldConstants(), InferShapes()]).model, [FuseAttention()])
    notes = "; ".join(note.removeprefix("fuse-attention: ") for note in result.notes) or "no attention found"
    if not result.changed:
        return notes
    pairs = zip(ort.compute(model, feeds), ort.compute(result.model, feeds), strict=True)
    return f"{notes}, outputs within {max(float(np.abs(one - other).max()) for one, other in pairs):.1e}"


def exported(
    module: nn.Module, inputs: dict[str, Tensor], target: Path, exporter: str, free: dict[str, dict[int, str]]
) -> None:
    """Write the module by one of PyTorch's exporters; `free` names the axes of inputs that stay free."""
    shapes: dict[str, object] = {}
    if free and exporter == "script":
        shapes["dynamic_axes"] = free
    elif free:
        axes = [dict.fromkeys(free.get(name, ()), torch.export.Dim.DYNAMIC) for name in inputs]
        shapes["dynamic_shapes"] = (*axes[:2], tuple(axes[2:]))
    torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        target,
        input_names=list(inputs),
        opset_version=18 if exporter == "dynamo" else 17,
        dynamo=exporter == "dynamo",
        external_data=False,
        verbose=False,
        **shapes,
    )


def cached() -> Iterator[tuple[str, nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]]:
    """Name, module, inputs and free axes of models with a cache."""
    t = transformers
    for kind in ("eager", "sdpa"):
        llama = t.LlamaModel(t.LlamaConfig(**TEXT, num_key_value_heads=1, attn_implementation=kind))
        gpt2 = t.GPT2Model(t.GPT2Config(vocab_size=50, n_embd=64, n_layer=2, n_head=2, attn_implementation=kind))
        for name, model, heads in (("Llama", llama, 1), ("GPT-2", gpt2, 2)):
            inputs = {"input_ids": torch.randint(5, 50, (1, 3)), "attention_mask": torch.ones(1, 8, dtype=torch.long)}
            past = {f"past{index}": torch.randn(1, heads, 5, 32) for index in range(4)}
            free = {"input_ids": {1: "new"}, "attention_mask": {1: "all"}, **{key: {2: "past"} for key in past}}
            module = Cached(model, 2)
            yield f"{name} cached {kind}", module, {**inputs, **past}, {}
            yield f"{name} cached {kind}, free", module, {**inputs, **past}, free


def main() -> None:
    """Print a line for every model and exporter."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    every = [(name, FirstOutput(module, list(inputs)), inputs, {}) for name, module, inputs in cases()]
    with tempfile.TemporaryDirectory() as folder:
        for name, module, inputs, free in (*every, *cached()):
            for exporter in ("dynamo", "script"):
                target = Path(folder) / "model.onnx"
                try:
                    exported(module, inputs, target, exporter, free)
                except Exception as error:  # noqa: BLE001 - an exporter's failure is one line of the table
                    print(f"{name:26} {exporter:7} not exported: {type(error).__name__}")
                    continue
                model = load(target)
                feeds = {spec.name: inputs[spec.name].numpy() for spec in model.inputs}
                print(f"{name:26} {exporter:7} {measure(model, feeds)}", flush=True)


if __name__ == "__main__":
    main()
