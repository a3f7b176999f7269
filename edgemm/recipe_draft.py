"""A first recipe from nothing but a graph's inputs and outputs, with comments that say what was guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgemm.options import SpectrumOptions
from edgemm.types import StatePair, TensorSpec

_STATE_WORDS = re.compile(r"state|hidden|cache|memory|^[hc](_?[0n]|_?in|_?out)?$|^past|^present|lstm|gru|rnn", re.I)
_PROBABILITY_WORDS = re.compile(r"softmax|prob|sigmoid", re.I)
_COMMON_MELS = (40, 64, 80, 96, 128)
_SPECTRUM_BINS = tuple(2**power + 1 for power in range(7, 12))
_CHANNELS = (1, 3)

_UNKNOWN_SIDE, _UNKNOWN_SAMPLES, _UNKNOWN_FRAMES = 224, 16000, 100
"""What stands for the sizes that a graph leaves open: pixels, samples, frames of a front end."""

_UNKNOWN_BLOCK = 512
"""Samples of a model that carries a state: it is stepped with short blocks."""


@dataclass(frozen=True)
class _Draft:
    """One input's lines, and the stream that it needs."""

    lines: list[str]
    stream: str | None = None
    hop: str = "100 ms"
    sizes: dict[int, int] = field(default_factory=dict)
    """By axis, what was taken for a size that the graph leaves open; others are 1."""


def draft(file: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Write a commented recipe for the model `file`. It is valid as it stands; what is a guess says so."""
    states = guess_states(inputs, outputs)
    state_inputs = {pair.input for pair in states}
    state_outputs = {pair.output for pair in states}
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", file.rsplit("/", 1)[-1].removesuffix(".onnx")).strip("-") or "model"
    block = _UNKNOWN_BLOCK if states else _UNKNOWN_SAMPLES
    drafts = {spec.name: _input(spec, block) for spec in inputs if spec.name not in state_inputs}
    streams = {d.stream for d in drafts.values() if d.stream}
    lines = [
        f"# Recipe for {file}, drafted from its inputs and outputs. Lines marked GUESS want your eye.",
        "# Every key: docs/recipe.md. Check it: edgemm build engine THIS_FILE -o OUT.edgemm --precision fp32",
        "edgemm = 1",
        f'name = "{name}"',
        'precision = "auto"   # fp32, fp16, int8, or auto: int8 only where it is accurate enough and faster here',
        "",
    ]
    if "mic" in streams:
        lines += ["[streams.mic]", 'kind = "audio"', "rate_hz = 16000   # GUESS", ""]
    if "camera" in streams:
        lines += ["[streams.camera]", 'kind = "video"', "fps = 25   # what a camera is asked for", ""]
    lines += [
        "[calibration]   # needed for int8 and auto",
        '# source = "calibration/"   # a folder of .npz (one array for each input), or a recording: "clip.mp4"',
        "",
        "[accuracy]",
        "max_drop = 0.01",
        "",
        f"[models.{name}]",
        f'file = "{file}"',
    ]
    if streams:
        hops = {d.hop for d in drafts.values() if d.stream}
        hop = hops.pop() if len(hops) == 1 else _Draft.hop
        lines.append(f'hop = "{hop}"   # GUESS: time from one step to the next')
    lines += _dims(inputs, {name: d.sizes for name, d in drafts.items()})
    for pair in states:
        lines.append(f"# GUESS: of the same shape and dtype: {pair.output} is fed back as {pair.input}")
    if states:
        pairs = ", ".join(f'{{ input = "{pair.input}", output = "{pair.output}" }}' for pair in states)
        lines.append(f"state = [{pairs}]")
    for spec in inputs:
        if spec.name in drafts:
            lines += ["", f"# {spec}", f"[models.{name}.inputs.{_key(spec.name)}]", *drafts[spec.name].lines]
    for spec in outputs:
        if spec.name not in state_outputs:
            lines += ["", f"# {spec}", f"[models.{name}.outputs.{_key(spec.name)}]", *_output(spec)]
    return "\n".join(lines) + "\n"


def guess_states(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[StatePair, ...]:
    """Pair outputs with inputs that look like the same state: same dtype, shapes that agree, and names alike.

    Behind the first input and the first output, which are what the model is for, the same fixed shape will do.
    """
    pairs: list[StatePair] = []
    taken: set[str] = set()
    for number, spec in enumerate(inputs):
        candidates = [
            o
            for o in outputs
            if o.name not in taken and o.dtype == spec.dtype and len(o.shape) > 0 and _same_shape(spec, o)
        ]
        behind = number > 0 and spec.is_static and math.prod(_sizes(spec)) > 1
        if behind:
            candidates = [o for o in candidates if _STATE_WORDS.search(spec.name) or o is not outputs[0]]
        if not candidates or not (behind or _STATE_WORDS.search(spec.name)):
            continue
        best = max(candidates, key=lambda o: _likeness(spec.name, o.name))
        if behind or _STATE_WORDS.search(best.name) or _likeness(spec.name, best.name) > 0:
            pairs.append(StatePair(spec.name, best.name))
            taken.add(best.name)
    return tuple(pairs)


def _sizes(spec: TensorSpec) -> list[int]:
    return [d for d in spec.shape if isinstance(d, int)]


def _same_shape(a: TensorSpec, b: TensorSpec) -> bool:
    return len(a.shape) == len(b.shape) and all(
        x == y or not isinstance(x, int) or not isinstance(y, int) for x, y in zip(a.shape, b.shape, strict=True)
    )


def _likeness(a: str, b: str) -> int:
    """Length of the common start of two names, which is what exporters keep: state/stateN, cache_0_in/cache_0_out."""
    count = 0
    for x, y in zip(a.lower(), b.lower(), strict=False):
        if x != y:
            break
        count += 1
    return count


def _dims(inputs: Sequence[TensorSpec], chosen: Mapping[str, Mapping[int, int]]) -> Iterator[str]:
    sizes: dict[str, int] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape):
            if not isinstance(dim, int):
                name = dim or f"{spec.name}_dim{axis}"
                sizes[name] = max(sizes.get(name, 1), chosen.get(spec.name, {}).get(axis, 1))
    if sizes:
        listed = ", ".join(f"{_key(name)} = {size}" for name, size in sorted(sizes.items()))
        yield f"dims = {{ {listed} }}   # GUESS: sizes of the dimensions that the graph leaves open"


def _input(spec: TensorSpec, block: int) -> _Draft:
    shape = [d if isinstance(d, int) else None for d in spec.shape]
    if math.prod(_sizes(spec)) == 1 and None not in shape and len(shape) <= 1:
        return _Draft([f"value = {16000 if 'int' in spec.dtype else 1.0}   # GUESS: a constant, like the sample rate"])
    if "float" not in spec.dtype:
        return _Draft([f"value = 0   # GUESS: {spec.dtype} comes from no stream; name its source or a constant"])
    if len(shape) >= 4 and (shape[-1] in _CHANNELS or shape[-3] in _CHANNELS) and 1 not in shape[-2:]:
        return _pictures(shape, len(shape) - 4)
    first = 0
    while len(shape) - first > 2 and shape[first] in (1, None):
        first += 1  # batch, and the frame axis of a single picture
    inner = shape[first:]
    if len(inner) == 2 and any(d in _COMMON_MELS for d in inner):
        return _mel(inner, first)
    if len(inner) <= 2 and inner[-1] in _SPECTRUM_BINS:
        return _spectrum(inner, first)
    if len(inner) <= 2:
        return _samples(inner, first, block)
    if len(inner) in (3, 4):
        return _pictures(shape, first)
    return _Draft(["value = 0.0   # GUESS: this shape fits no front end; name its source"])


def _mel(shape: list[int | None], first: int) -> _Draft:
    mels_first = shape[0] in _COMMON_MELS
    mels, frames = (shape[0], shape[1]) if mels_first else (shape[1], shape[0])
    return _Draft(
        [
            'stream = "mic"',
            f'window = "{frames or _UNKNOWN_FRAMES} frames"' + ("" if frames else "   # GUESS"),
            *(["time_axis = 1   # the tensor is [mels, frames]"] if mels_first else []),
            f"log_mel = {{ n_mels = {mels} }}   # GUESS: Kaldi's log-mel; give the options of your training",
        ],
        "mic",
        sizes={first + (1 if mels_first else 0): _UNKNOWN_FRAMES},
    )


def _spectrum(shape: list[int | None], first: int) -> _Draft:
    frames = (shape[0] or 1) if len(shape) == 2 else 1
    size = 2 * ((shape[-1] or 0) - 1)
    options = "" if size == SpectrumOptions.fft_size else f" window_samples = {size}, fft_size = {size} "
    return _Draft(
        [
            'stream = "mic"',
            f'window = "{frames} frames"',
            f"spectrum = {{{options}}}   # GUESS: magnitudes; give the window, hop_samples and power of your training",
        ],
        "mic",
        f"{SpectrumOptions.hop_samples} samples",
    )


def _samples(shape: list[int | None], first: int, block: int) -> _Draft:
    count = shape[-1]
    samples = count or block
    return _Draft(
        [
            'stream = "mic"',
            f'window = "{samples} samples"   # GUESS' + (": raw sound" if count else ""),
        ],
        "mic",
        # Without overlap, and ten times a second where a step sees a second or more.
        f"{samples} samples" if samples < _UNKNOWN_SAMPLES else _Draft.hop,
        {first + len(shape) - 1: samples},
    )


def _pictures(shape: list[int | None], first: int) -> _Draft:
    inner = shape[first:]
    hwc = inner[-1] in _CHANNELS and inner[-3] not in _CHANNELS
    height, width, channels = (inner[-3:]) if hwc else (inner[-2], inner[-1], inner[-3])
    options = [f"width = {width or _UNKNOWN_SIDE}", f"height = {height or _UNKNOWN_SIDE}"]
    if channels == 1 or (len(inner) == 3 and channels not in _CHANNELS):
        options.append('color = "gray"')
    if hwc:
        options.append('layout = "hwc"')
    lines = ['stream = "camera"']
    frames = inner[0] if len(inner) == 4 else (channels if channels not in _CHANNELS else None)
    if frames and frames > 1:
        lines += [f'window = "{frames} frames"', 'spacing = "40 ms"   # GUESS']
    lines.append(f"image = {{ {', '.join(options)} }}   # GUESS: give the scale, mean and std of your training")
    sides = (len(shape) - 3, len(shape) - 2) if hwc else (len(shape) - 2, len(shape) - 1)
    return _Draft(lines, "camera", "40 ms", dict.fromkeys(sides, _UNKNOWN_SIDE))


def _output(spec: TensorSpec) -> list[str]:
    last = spec.shape[-1] if spec.shape else 1
    if last == 1:
        return ['decode = "threshold"   # GUESS: a probability; "sigmoid" for a logit', "threshold = 0.5"]
    if _PROBABILITY_WORDS.search(spec.name) and isinstance(last, int) and len(spec.shape) <= 2:
        return ['decode = "argmax"   # GUESS: probabilities, by the name; "softmax" for logits', "labels = []"]
    if isinstance(last, int) and len(spec.shape) == 2 and last <= 1000:
        return ['decode = "softmax"   # GUESS: logits; "argmax" for probabilities', "labels = []"]
    return ['decode = "raw"   # or softmax, argmax, sigmoid, threshold, embedding']


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'
