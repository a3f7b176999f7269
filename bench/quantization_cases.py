"""The models of bench/quantization.py: what each is calibrated on, and how its answers are judged.

A case measures a model on inputs that calibration does not see and gives figures with the draws of a bootstrap
(`paired.py`), over groups of answers that belong together: ten sounds with ten pictures, or one recording, or one file.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import model_inputs as inputs
import numpy as np
import onnxruntime as ort
import paired
from paired import Measured

from edgemm.engine.executor import OnnxRuntimeExecutor
from edgemm.graph import Model, load
from edgemm.quant import Form, Sample, from_folder
from edgemm.types import StatePair

HOME = Path(__file__).resolve().parents[1]
DEMO = HOME / "calibration" / "av_digits"

SAME = "answers as float"
"""Share of the answers (best class, or above a threshold) that are the float model's: what int8 changes, right or
wrong."""

DIVERGENCE = "KL to float, mnat"
"""Kullback-Leibler divergence of the model's probabilities from the float model's, per answer, in 0.001 nat."""

LOSS = "log loss, mnat"
"""-ln of the probability that the model gives the truth, per answer, in 0.001 nat: accuracy without a threshold."""

LOWER_IS_BETTER = (DIVERGENCE, LOSS)


@dataclass
class Case:
    """One model, its calibration set, and how its answers are judged."""

    name: str
    model: Model
    samples: list[Sample]
    measure: Callable[[Model], Measured]
    """Figures of a model. It is called with the float model first."""
    judged: str
    """The figure that stands for accuracy, and that the search works with."""
    held_out: list[Sample]
    """Inputs that calibration does not see, for the agreement with float in dB."""
    about: str
    """What the figures are over, in words."""
    states: list[StatePair] = field(default_factory=list)
    forms: Sequence[Form] = ("onnxruntime",)
    peers: bool = True
    """Whether onnxruntime's quantizer is measured as well."""
    max_drop: float | None = None
    """What the search may lose of the figure that is judged; None: no search."""


def make(name: str, wide: Path | None, data: Path | None) -> Case:
    """The case of that name; `data` is the folder that bench/models_fetch.sh filled."""
    if name == "av_digits":
        return replace(demo_case(wide), max_drop=0.002)
    if name == "av_digits_tensorrt":
        # That form does not fuse on a CPU and takes three times as long: a part of the wide set.
        return replace(demo_case(wide, 200), name=name, forms=("onnxruntime", "tensorrt"), peers=False)
    if data is None:
        raise SystemExit(f"{name} needs --models.")
    return replace(silero_case(data), max_drop=0.005) if name == "silero_vad" else package_case(name, data)


# The demo model


@dataclass
class Pairs:
    """Sounds, pictures and the pairs made of them; every group has as many pairs that match as not."""

    sounds: dict[str, np.ndarray]
    """By condition: float32 [n, 40, 100], normalised."""
    pictures: dict[str, np.ndarray]
    """By condition: uint8 [n, 8, 32, 32]."""
    labels: np.ndarray
    """Of sound k and of picture k: the same."""
    chosen: np.ndarray
    """[groups, pairs, 2]: index of the sound and of the picture."""


CONDITIONS = (
    ("clean", "clean", "clean"),
    ("noise -5 dB", "snr-5", "clean"),
    ("occluded", "clean", "occluded"),
    ("both", "snr-5", "occluded"),
)


def wide_pairs(file: Path, mean: float, std: float, groups: int | None = None) -> Pairs:
    """What export/av_digits/make_wide_test.py wrote: groups of ten sounds and ten pictures, one of each digit.

    In a group each sound is paired with the picture of its digit and with that of another, all shifted by the same.
    """
    with np.load(file) as data:
        count = len(data["audio_clean"]) // 10 if groups is None else groups
        held = {key: data[key][: 10 * count] for key in data.files}
    sounds = {
        key.removeprefix("audio_"): ((value.astype(np.float32) - np.float32(mean)) / np.float32(std))
        for key, value in held.items()
        if key.startswith("audio_")
    }
    pictures = {key.removeprefix("video_"): value for key, value in held.items() if key.startswith("video_")}
    shifts = np.random.default_rng(0).integers(1, 10, count)
    digits = np.arange(10)
    chosen = [
        [(10 * g + d, 10 * g + (d + shift) % 10) for shift in (0, int(other)) for d in digits]
        for g, other in enumerate(shifts)
    ]
    return Pairs(sounds, pictures, np.arange(10 * count) % 10, np.array(chosen))


def committed_pairs(scoring: ModuleType) -> Pairs:
    """The committed test set: 180 sounds, each a group with the four pictures that it is paired with."""
    test = scoring.load_test(DEMO / "test.npz")
    if not np.array_equal(test["spoken"], test["shown"]):
        raise SystemExit("test.npz: sound k and picture k show different digits; make it again with evaluate.py.")
    sounds = {key.removeprefix("audio_"): value for key, value in test.items() if key.startswith("audio_")}
    pictures = {
        key.removeprefix("video_"): np.round(value * 255).astype(np.uint8)
        for key, value in test.items()
        if key.startswith("video_")
    }
    order = np.argsort(test["pairs"][:, 0], kind="stable")
    return Pairs(sounds, pictures, test["spoken"].astype(int), test["pairs"][order].reshape(len(test["spoken"]), -1, 2))


def demo_answers(model: Model, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the digit [conditions, groups, pairs, 10] and probabilities of a match [conditions, groups, pairs]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    shape = (len(CONDITIONS), *pairs.chosen.shape[:2])
    digits, matches = np.empty((*shape, 10)), np.empty(shape)
    for number, (_, sound, picture) in enumerate(CONDITIONS):
        for group, members in enumerate(pairs.chosen):
            for place, (i, j) in enumerate(members):
                feeds = {
                    "audio": pairs.sounds[sound][i][None],
                    "video": pairs.pictures[picture][j][None].astype(np.float32) / 255,
                }
                digit, match = session.run(["digit", "match"], feeds)
                digits[number, group, place], matches[number, group, place] = digit[0], match[0, 0]
    return digits, matches


def demo_case(wide: Path | None = None, groups: int | None = None) -> Case:
    """The audio-visual digits, ranges from the committed calibration set; judged on `wide` or on the committed test."""
    scoring = module(HOME / "export" / "av_digits" / "score.py")
    model = load(DEMO / "av_digits.onnx")
    norm = {item.key: float(item.value) for item in model.proto.metadata_props}
    pairs = (
        committed_pairs(scoring)
        if wide is None
        else wide_pairs(wide, norm["log_mel_mean"], norm["log_mel_std"], groups)
    )
    spoken, shown = pairs.labels[pairs.chosen[..., 0]], pairs.labels[pairs.chosen[..., 1]]
    agree = spoken == shown
    draws = paired.weights(len(pairs.chosen))
    by_float: list[tuple[np.ndarray, np.ndarray]] = []

    def measure(candidate: Model) -> Measured:
        digits, matches = demo_answers(candidate, pairs)
        if not by_float:
            by_float.append((digits, matches))
        return judge(digits, matches, *by_float[0])

    def judge(digits: np.ndarray, matches: np.ndarray, want_digits: np.ndarray, want_matches: np.ndarray) -> Measured:
        """Groups have as many pairs of each kind, so that means over groups are means over answers."""
        best, believed = digits.argmax(-1), matches > 0.5
        right_digit, right_match = best == spoken, believed == agree
        same_digit, same_match = best == want_digits.argmax(-1), believed == (want_matches > 0.5)
        ours, theirs = log_softmax(digits), log_softmax(want_digits)
        gap_digit = (np.exp(theirs) * (theirs - ours)).sum(-1)
        gap_match = bernoulli_kl(want_matches, matches)
        loss_digit = -np.take_along_axis(ours, np.broadcast_to(spoken, best.shape)[..., None], -1)[..., 0]
        loss_match = -np.log(clip(np.where(agree, matches, 1 - matches)))

        def of_digit(values: np.ndarray) -> np.ndarray:
            """Where sound and picture differ no single digit is right: those are left out. [conditions, groups]."""
            return (values * agree).sum(-1) / agree.sum(-1)

        def both(digit: np.ndarray, match: np.ndarray) -> np.ndarray:
            return (of_digit(digit).mean(0) + match.mean((0, 2))) / 2

        values = {
            "mean accuracy": both(right_digit, right_match),
            SAME: both(same_digit, same_match),
            DIVERGENCE: 1e3 * both(gap_digit, gap_match),
            LOSS: 1e3 * both(loss_digit, loss_match),
        }
        for number, (name, _, _) in enumerate(CONDITIONS):
            values[f"digit, {name}"] = of_digit(right_digit)[number]
            values[f"match, {name}"] = right_match[number].mean(-1)
        found = paired.means(values, draws)
        found.right = np.concatenate([right_digit[:, agree].reshape(-1), right_match.reshape(-1)])
        return found

    sounds, pictures = pairs.sounds["clean"], pairs.pictures["clean"]
    held_out = [
        Sample([{"audio": sounds[i][None], "video": pictures[i][None] / np.float32(255)}], "") for i in range(150)
    ]
    answers = len(CONDITIONS) * int(agree.sum() + agree.size)
    return Case(
        "av_digits",
        model,
        list(from_folder(DEMO / "calibration", model.inputs)),
        measure,
        "mean accuracy",
        held_out,
        f"{answers} answers: {agree.size} pairs of {len(pairs.labels)} sounds and pictures in four conditions, in "
        f"{len(pairs.chosen)} groups that share none.",
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def clip(probability: np.ndarray) -> np.ndarray:
    """A sigmoid that is quantized ends at 0 and at 1, in steps of 1/255: nothing is held to be surer than 0.001."""
    return np.clip(probability, 1e-3, 1 - 1e-3)


def bernoulli_kl(want: np.ndarray, have: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of probabilities of one event, in nat."""
    p, q = clip(want), clip(have)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def module(file: Path) -> ModuleType:
    """A script that is no package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"Cannot read {file}.")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


# A speech detector


def silero_case(data: Path) -> Case:
    """silero-vad: area under the ROC curve, frame by frame, on speech in noise and on noise alone."""
    model = load(data / "packages" / "silero_vad" / "data" / "silero_vad_openvino_16k.onnx")
    rng = np.random.default_rng(0)
    mixed = [inputs.speech_in_noise(clip, rng, 512) for clip in inputs.prompts(data)[:120]]
    made = [(Sample(inputs.silero_chunks(audio, ["input"]), f"{n}"), labels) for n, (audio, labels) in enumerate(mixed)]
    calibration, test = made[:24], made[24:]
    draws = paired.weights(len(test))
    by_float: list[np.ndarray] = []
    owner = np.concatenate([np.full(len(labels), number) for number, (_, labels) in enumerate(test)])
    truth = np.array([label for _, labels in test for label in labels], object)
    judged = np.array([label is not None for label in truth])

    def measure(candidate: Model) -> Measured:
        scores = []
        with OnnxRuntimeExecutor().open(candidate) as runner:
            for sample, _ in test:
                state = np.zeros((2, 1, 128), np.float32)
                for feeds in sample.steps:
                    out = runner.run({**feeds, "state": state})
                    state = np.array(out["stateN"])
                    scores.append(float(np.asarray(out["output"]).reshape(-1)[0]))
        found = np.array(scores)
        if not by_float:
            by_float.append(found)
        same = (found > 0.5) == (by_float[0] > 0.5)
        gap = bernoulli_kl(by_float[0], found) * 1e3
        loss = -np.log(clip(np.where(truth == True, found, 1 - found))) * 1e3  # noqa: E712 - None is neither
        of_all = ratio({SAME: same, DIVERGENCE: gap}, np.ones(len(found), bool), owner, draws)
        of_judged = ratio({LOSS: loss}, judged, owner, draws)
        labels = truth[judged].astype(bool)
        area = Measured(
            {"AUC": paired.auc(labels, found[judged])},
            {"AUC": np.array([paired.auc(labels, found[judged], draw[owner[judged]]) for draw in draws[:400]])},
        )
        # 400 draws: each sorts all windows.
        return Measured(
            {**area.figures, **of_all.figures, **of_judged.figures},
            {**area.drawn, **of_all.drawn, **of_judged.drawn},
            (found[judged] > 0.5) == labels,
        )

    return Case(
        "silero_vad",
        model,
        [sample for sample, _ in calibration],
        measure,
        "AUC",
        [sample for sample, _ in test[:12]],
        f"{int(judged.sum())} windows of {len(test)} recordings.",
        [StatePair("state", "stateN")],
    )


def ratio(values: dict[str, np.ndarray], counted: np.ndarray, owner: np.ndarray, draws: np.ndarray) -> Measured:
    """Means over the answers that are counted, of groups of different sizes."""
    sizes = np.bincount(owner, counted, draws.shape[1])
    sums = {name: np.bincount(owner, value * counted, draws.shape[1]) for name, value in values.items()}
    return Measured(
        {name: float(total.sum() / sizes.sum()) for name, total in sums.items()},
        {name: (draws @ total) / (draws @ sizes) for name, total in sums.items()},
    )


# Models of bench/models.py: judged by their agreement with float


def package_case(name: str, data: Path) -> Case:
    """A model of bench/models.py without a state: what it is fed there, as `edgemm build` makes its graph."""
    import models

    import edgemm
    from edgemm import bundle as bundles
    from edgemm.graph import from_bytes

    found = next(case for case in models.CASES if case.name == name)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        recipe = work / f"{name}.toml"
        recipe.write_text((models.RECIPES / f"{name}.toml").read_text())
        (wanted,) = models.recipes.load(recipe).models.values()
        (work / wanted.file).write_bytes((data / "packages" / found.file).read_bytes())
        prepared = found.prepare(data, work)
        edgemm.build(recipe, work / "float.edgemm", precision="fp32")
        bundle = bundles.open(work / "float.edgemm")
        (entry,) = bundle.models.values()
        model = from_bytes(bundle.read(entry.variants["fp32"].file))
    calibration = [Sample(steps, f"sample {n}") for n, steps in enumerate(prepared.calibration, 1)]
    tests = [steps[0] for steps in prepared.test]
    draws = paired.weights(len(tests))
    by_float: list[list[dict[str, np.ndarray]]] = []

    def measure(candidate: Model) -> Measured:
        with OnnxRuntimeExecutor().open(candidate) as runner:
            given = [{key: np.array(value, np.float64) for key, value in runner.run(x).items()} for x in tests]
        if not by_float:
            by_float.append(given)
        pairs = list(zip(by_float[0], given, strict=True))
        decisive = found.decisive or ""
        same = np.array([np.mean(found.decide(a[decisive]) == found.decide(b[decisive])) for a, b in pairs])
        signal = np.array([np.sum(a[decisive] ** 2) for a, _ in pairs])
        noise = np.array([np.sum((a[decisive] - b[decisive]) ** 2) for a, b in pairs]) + 1e-30
        result = paired.means({SAME: same}, draws)
        result.figures[NOISE] = float(10 * np.log10(noise.sum() / signal.sum()))
        result.drawn[NOISE] = 10 * np.log10((draws @ noise) / (draws @ signal))
        return result

    return Case(
        name,
        model,
        calibration,
        measure,
        SAME,
        [Sample([x], "") for x in tests[:10]],
        f"{len(tests)} inputs ({found.inputs}); what they are was not labelled, float is the measure.",
    )


NOISE = "noise, dB"
"""Energy of the difference from the float model's decisive output, over its energy."""
