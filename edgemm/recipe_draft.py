"""A first recipe from nothing but a graph's inputs and outputs, with comments that say what was guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgemm.types import StatePair, TensorSpec

_STATE_WORDS = re.compile(r"state|hidden|cache|memory|^[hc](_?[0n]|_?in|_?out)?$|^past|^present|lstm|gru|rnn", re.I)
_COMMON_MELS = (40, 64, 80, 96, 128)


@dataclass(frozen=True)
class _Draft:
    """One input's lines, and the stream that it needs."""

    lines: list[str]
    stream: str | None = None


def draft(file: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Write a commented recipe for the model `file`. It is valid as it stands; what is a guess says so."""
    states = guess_states(inputs, outputs)
    state_inputs = {pair.input for pair in states}
    state_outputs = {pair.output for pair in states}
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", file.rsplit("/", 1)[-1].removesuffix(".onnx")).strip("-") or "model"
    drafts = {spec.name: _input(spec) for spec in inputs if spec.name not in state_inputs}
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
        lines.append('hop = "100 ms"   # GUESS: time from one step to the next')
    lines += _dims(inputs)
    for pair in states:
        lines.append(f"# GUESS: same shape and dtype, and the names look alike: {pair.output} is fed back")
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
    """Pair outputs with inputs that look like the same state: same dtype, shapes that agree, names alike."""
    pairs: list[StatePair] = []
    taken: set[str] = set()
    for spec in inputs:
        candidates = [
            o
            for o in outputs
            if o.name not in taken and o.dtype == spec.dtype and len(o.shape) > 0 and _same_shape(spec, o)
        ]
        if not candidates or not _STATE_WORDS.search(spec.name):
            continue
        best = max(candidates, key=lambda o: _likeness(spec.name, o.name))
        if _STATE_WORDS.search(best.name) or _likeness(spec.name, best.name) > 0:
            pairs.append(StatePair(spec.name, best.name))
            taken.add(best.name)
    return tuple(pairs)


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


def _dims(inputs: Sequence[TensorSpec]) -> Iterator[str]:
    names = sorted({d for spec in inputs for d in spec.shape if isinstance(d, str)})
    if names:
        sizes = ", ".join(f"{_key(n)} = 1" for n in names)
        yield f"dims = {{ {sizes} }}   # GUESS: sizes of the symbolic dimensions"


def _input(spec: TensorSpec) -> _Draft:
    shape = [d if isinstance(d, int) else None for d in spec.shape]
    while len(shape) > 2 and shape[0] in (1, None):
        shape = shape[1:]  # batch, and the frame axis of a single picture
    sizes = [d for d in shape if d is not None]
    if all(d == 1 for d in sizes) and len(sizes) == len(shape) and len(spec.shape) <= 1:
        return _Draft([f"value = {16000 if 'int' in spec.dtype else 1.0}   # GUESS: a constant, like the sample rate"])
    if "float" not in spec.dtype:
        return _Draft([f"value = 0   # GUESS: {spec.dtype} comes from no stream; name its source or a constant"])
    if len(shape) == 2 and any(d in _COMMON_MELS for d in sizes):
        return _mel(shape)
    if len(shape) <= 2:
        return _samples(shape)
    if len(shape) in (3, 4):
        return _pictures(shape)
    return _Draft(["value = 0.0   # GUESS: this shape fits no front end; name its source"])


def _mel(shape: list[int | None]) -> _Draft:
    mels_first = shape[0] in _COMMON_MELS
    mels, frames = (shape[0], shape[1]) if mels_first else (shape[1], shape[0])
    return _Draft(
        [
            'stream = "mic"',
            f'window = "{frames or 100} frames"' + ("" if frames else "   # GUESS"),
            *(["time_axis = 1   # the tensor is [mels, frames]"] if mels_first else []),
            f"log_mel = {{ n_mels = {mels} }}   # GUESS: Kaldi's log-mel; give the options of your training",
        ],
        "mic",
    )


def _samples(shape: list[int | None]) -> _Draft:
    count = shape[-1]
    return _Draft(
        [
            'stream = "mic"',
            f'window = "{count or 16000} samples"' + ("   # GUESS: raw sound" if count else "   # GUESS"),
        ],
        "mic",
    )


def _pictures(shape: list[int | None]) -> _Draft:
    hwc = shape[-1] in (1, 3) and shape[-3] not in (1, 3)
    height, width, channels = (shape[-3:]) if hwc else (shape[-2], shape[-1], shape[-3])
    options = [f"width = {width or 224}", f"height = {height or 224}"]
    if channels == 1 or (len(shape) == 3 and channels not in (1, 3)):
        options.append('color = "gray"')
    if hwc:
        options.append('layout = "hwc"')
    lines = ['stream = "camera"']
    frames = shape[0] if len(shape) == 4 else (channels if channels not in (1, 3) else None)
    if frames and frames > 1:
        lines += [f'window = "{frames} frames"', 'spacing = "40 ms"   # GUESS']
    lines.append(f"image = {{ {', '.join(options)} }}   # GUESS: give the scale, mean and std of your training")
    return _Draft(lines, "camera")


def _output(spec: TensorSpec) -> list[str]:
    last = spec.shape[-1] if spec.shape else 1
    if last == 1:
        return ['decode = "threshold"   # GUESS: a probability; "sigmoid" for a logit', "threshold = 0.5"]
    if isinstance(last, int) and len(spec.shape) == 2 and last <= 1000:
        return ['decode = "softmax"   # GUESS: logits; "argmax" for probabilities', "labels = []"]
    return ['decode = "raw"   # or softmax, argmax, sigmoid, threshold, embedding']


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'
