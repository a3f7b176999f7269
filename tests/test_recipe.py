"""The recipe: what it reads, what it refuses and in which words; and the first draft from a graph."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemm import recipe
from edgemm.errors import RecipeError
from edgemm.recipe import Duration, Gate
from edgemm.recipe_draft import draft, guess_states
from edgemm.types import StatePair, TensorSpec

TEXT = """\
edgemm = 1
name = "av"
precision = "auto"

[streams.mic]
kind = "audio"
rate_hz = 16000

[streams.camera]
kind = "video"
fps = 25

[models.vad]
file = "vad.onnx"
hop = "512 samples"
state = [{ input = "state", output = "stateN" }]
inputs.input = { stream = "mic", window = "576 samples" }
inputs.sr = { value = 16000 }
outputs.speech = { decode = "threshold", threshold = 0.5 }

[models.av]
file = "av.onnx"
hop = "100 ms"
when = "vad.speech > 0.5"
hold = "500 ms"
precision = "int8"

[models.av.inputs.audio]
stream = "mic"
window = "1 s"
time_axis = 1
log_mel = { n_mels = 40 }

[models.av.inputs.video]
stream = "camera"
window = "8 frames"
spacing = "125 ms"
image = { width = 32, height = 32, color = "gray" }

[models.av.inputs.score]
from = "vad.speech"

[models.av.outputs.digit]
decode = "softmax"
labels = ["zero", "one"]
"""


def test_a_full_recipe_is_read() -> None:
    read = recipe.parse(TEXT)
    av = read.models["av"]
    assert av.hop == Duration(Fraction(100), "ms")
    assert av.inputs["audio"].log_mel is not None
    assert av.inputs["audio"].log_mel.n_mels == 40
    assert av.inputs["score"].source == "vad.speech"
    assert isinstance(av.outputs["digit"], recipe.Softmax)
    assert av.when == Gate("vad", "speech", ">", 0.5)
    assert read.models["vad"].states == (StatePair("state", "stateN"),)
    assert read.precision_of("av") == "int8"
    assert read.precision_of("vad") == "auto"
    assert recipe.hop_ns(read, "vad") == 32_000_000
    assert recipe.hop_ns(read, "av") == 100_000_000


def test_json_round_trip_keeps_everything() -> None:
    read = recipe.parse(TEXT)
    assert recipe.from_json(read.to_json()) == read
    assert recipe.from_json(read.to_json()).to_json() == read.to_json()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("edgemm = 1", "edgemm = 2", "r.toml:1: edgemm: expected the recipe's schema version, edgemm = 1, found 2"),
        ("edgemm = 1", "", "found None"),
        ('name = "av"', "name = 3", "r.toml:2: name: expected str, got int"),
        ("fps = 25", "fsp = 25", "r.toml:11: streams.camera.fsp: unknown key"),
        ("fps = 25", "fps = 0", "streams.camera.fps: expected float > 0.0"),
        ('kind = "video"', 'kind = "smell"', "r.toml:10: streams.camera.kind: invalid value 'smell'"),
        ('hop = "100 ms"', "hop = 100", "models.av.hop: expected text, found 100"),
        ('hop = "100 ms"', "", "models.av: an input comes from a stream but hop is missing"),
        ('hop = "100 ms"', 'hop = "3 frames"', 'models.av.hop: "3 frames" counts pictures'),
        ('window = "1 s"', 'window = "1 parsec"', 'expected a duration like "100 ms", "1 s"'),
        ('window = "1 s"', 'window = "1 ms"', '"1 ms" is 0.1 frames of 160 samples: expected a whole number'),
        ('window = "1 s"\n', "", "models.av.inputs.audio: window is missing"),
        ("n_mels", "n_mel", "models.av.inputs.audio.log_mel.n_mel: unknown key, expected one of: edges"),
        ("n_mels = 40", 'n_mels = "x"', "models.av.inputs.audio.log_mel.n_mels: expected int, got str"),
        ("n_mels = 40", "rate_hz = 8000", "the front end expects 8000 Hz, the stream has 16000 Hz"),
        ('stream = "camera"', 'stream = "kamera"', 'no stream "kamera", expected one of: "mic", "camera"'),
        ('stream = "camera"', 'stream = "mic"', "belongs to a video stream"),
        ('spacing = "125 ms"\n', "", "models.av.inputs.video: spacing is missing"),
        ('spacing = "125 ms"', 'spacing = "2 frames"', "expected a time like"),
        ('window = "8 frames"', 'window = "8 ms"', "expected a number of pictures"),
        ("image = {", "log_mel = {", "log_mel.width: unknown key"),
        ('from = "vad.speech"', 'from = "later.speech"', 'expected a model that stands earlier: "vad"'),
        ('from = "vad.speech"', 'from = "vad"', 'expected "model.output", found "vad"'),
        ('from = "vad.speech"', 'from = "vad.speech"\nvalue = 1', "expected one of stream, streams, from or value"),
        ('from = "vad.speech"', "", "found none"),
        ('from = "vad.speech"', 'from = "vad.speech"\nwindow = "1 s"', "window belongs to an input with a stream"),
        ('when = "vad.speech > 0.5"', 'when = "vad.speech"', 'expected a condition like "vad.speech > 0.5"'),
        ('when = "vad.speech > 0.5"', 'when = "x.y > 1"', 'names the model "x", expected one that stands before "av"'),
        ('when = "vad.speech > 0.5"', 'when = "vad.y > 1"', 'names the output "y", expected one of: "speech"'),
        ('when = "vad.speech > 0.5"\n', "", "a hold time without a gate"),
        ('window = "576 samples"', 'window = "576 frames"', "frames need a log_mel, mfcc or spectrum front end"),
        ('window = "576 samples"', 'window = "1 us"', "0.016 samples at 16000 Hz: expected a whole number"),
        ("[models.av]", "dims = { n = 0 }\n[models.av]", "expected a positive number or [min, opt, max], found 0"),
        ("[models.av]", "dims = { n = [1, 2] }\n[models.av]", "expected a positive number or [min, opt, max]"),
        ("[streams.mic]", "[streams.mic", "not valid TOML"),
        ('decode = "softmax"', 'decode = "magic"', "models.av.outputs.digit.decode: invalid value 'magic'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in TEXT
    path = tmp_path / "r.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(RecipeError) as error:
        recipe.load(path)
    assert words in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('edgemm = 1\nname = "x"\nmodels = {}', "expected at least one model"),
        ('edgemm = 1\nname = "x"\n[models."a b"]\nfile = "f"', "expected a name of letters"),
        ("edgemm = 1\nmodels = 3", "expected object, got int"),
        (
            'edgemm = 1\nname = "x"\n[streams.c]\nkind = "video"\n[models.m]\nfile = "f"\nhop = "1 s"\n'
            '[models.m.inputs.x]\nstream = "c"',
            "image is missing",
        ),
        (
            'edgemm = 1\nname = "x"\n[streams.c]\nkind = "video"\n[models.m]\nfile = "f"\nhop = "5 samples"\n'
            '[models.m.inputs.x]\nstream = "c"\nimage = { width = 1, height = 1 }',
            "needs exactly one audio stream",
        ),
    ],
)
def test_smaller_recipes_that_are_wrong(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe.parse(text)


def test_two_front_ends_are_one_too_many() -> None:
    with pytest.raises(RecipeError, match="expected one front end"):
        recipe.parse(TEXT.replace("log_mel = { n_mels = 40 }", "log_mel = { n_mels = 40 }\nmfcc = {}"))
    with pytest.raises(RecipeError, match=r"mfcc\.log_mel\.nmels: unknown key"):
        recipe.parse(TEXT.replace("log_mel = { n_mels = 40 }", "mfcc = { log_mel = { nmels = 3 } }"))


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Cannot read the recipe"):
        recipe.load(tmp_path / "none.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="expected TOML in UTF-8"):
        recipe.load(tmp_path / "binary")
    with pytest.raises(RecipeError, match="not a recipe"):
        recipe.from_json(b"{")


@given(
    st.fractions(min_value="1/1000", max_value=10**6).filter(lambda f: f > 0),
    st.sampled_from(["s", "ms", "us", "samples", "frames"]),
)
def test_durations_survive_their_text(value: Fraction, unit: str) -> None:
    duration = Duration.parse(f"{value} {unit}")
    assert duration.value == value
    assert Duration.parse(str(duration)) == duration


def test_durations() -> None:
    assert Duration.parse("32 ms").samples(16000) == 512
    assert Duration.parse("1.5 s").ns() == 1_500_000_000
    assert Duration.parse("512 samples").ns(16000) == 32_000_000
    with pytest.raises(ValueError, match="has no length in seconds"):
        Duration.parse("8 frames").ns()
    with pytest.raises(ValueError, match="expected a duration"):
        Duration.parse("0 ms")
    assert repr(Duration.parse("8 frames")) == 'Duration.parse("8 frames")'
    assert Duration.parse("1 s") != "1 s"
    assert len({Duration.parse("1 s"), Duration.parse("1 s")}) == 1


@pytest.mark.parametrize(
    ("text", "score", "holds"),
    [("a.b > 1", 1, False), ("a.b >= 1", 1, True), ("a.b < 1", 0.5, True), ("a.b <= 1e-1", 0.5, False)],
)
def test_gates(text: str, score: float, holds: bool) -> None:
    assert Gate.parse(text).holds(score) is holds


def test_the_tensors_of_the_graph_are_compared() -> None:
    vad = recipe.parse(TEXT).models["vad"]
    f = "float32"
    inputs = [TensorSpec("input", f, (1, 576)), TensorSpec("sr", "int64", ()), TensorSpec("state", f, (2, 1, 128))]
    outputs = [TensorSpec("speech", f, (1, 1)), TensorSpec("stateN", f, (2, 1, 128))]
    recipe.check_tensors("vad", vad, inputs, outputs)
    with pytest.raises(RecipeError, match='has no input "sr", expected one of: "input", "state"'):
        recipe.check_tensors("vad", vad, [inputs[0], inputs[2]], outputs)
    with pytest.raises(RecipeError, match='has no output "speech"'):
        recipe.check_tensors("vad", vad, inputs, outputs[1:])
    with pytest.raises(RecipeError, match=r'models\.vad\.state: .* has no input "state"'):
        recipe.check_tensors("vad", vad, inputs[:2], outputs)
    with pytest.raises(RecipeError, match=r'models\.vad\.state: .* has no output "stateN"'):
        recipe.check_tensors("vad", vad, inputs, outputs[:1])
    with pytest.raises(RecipeError, match=r'the input "mask: float32\[1\]" of "vad\.onnx" has no source'):
        recipe.check_tensors("vad", vad, [*inputs, TensorSpec("mask", f, (1,))], outputs)


def test_a_model_without_a_hop_cannot_be_streamed() -> None:
    read = recipe.parse('edgemm = 1\nname = "x"\n[models.m]\nfile = "f"')
    with pytest.raises(RecipeError, match="can be profiled, but not run on a stream"):
        recipe.hop_ns(read, "m")


F = "float32"
GRAPHS = {
    "silero": (
        [TensorSpec("input", F, (1, 576)), TensorSpec("state", F, (2, "batch", 128)), TensorSpec("sr", "int64", ())],
        [TensorSpec("output", F, (1, 1)), TensorSpec("stateN", F, (2, None, 128))],
        {"input": "samples", "sr": "value"},
    ),
    "keywords": ([TensorSpec("mel", F, (1, 40, 98))], [TensorSpec("logits", F, (1, 12))], {"mel": "log_mel"}),
    "frames first": ([TensorSpec("mel", F, (1, "t", 80))], [TensorSpec("y", F, (1, "t", 5))], {"mel": "log_mel"}),
    "picture": ([TensorSpec("image", F, (1, 3, 224, 224))], [TensorSpec("y", F, (1, 1000))], {"image": "image"}),
    "hwc": ([TensorSpec("image", F, ("n", 64, 48, 3))], [TensorSpec("y", F, (1, 1000))], {"image": 'layout = "hwc"'}),
    "gray film": ([TensorSpec("v", F, (1, 8, 32, 32))], [TensorSpec("y", F, (1, 1))], {"v": "8 frames"}),
    "film": ([TensorSpec("v", F, (1, 16, 3, 112, 112))], [TensorSpec("y", F, (1, 400))], {"v": "16 frames"}),
    "tokens": ([TensorSpec("ids", "int64", (1, 128))], [TensorSpec("y", F, (1, 4))], {"ids": "value"}),
    "silero as shipped": (
        [TensorSpec("input", F, (None, None)), TensorSpec("state", F, (2, None, 128)), TensorSpec("sr", "int64", ())],
        [TensorSpec("output", F, (None, 1)), TensorSpec("stateN", F, (None, None, None))],
        {"input": "512 samples", "sr": "value"},
    ),
    "a second": ([TensorSpec("x", F, (1, "n"))], [TensorSpec("y", F, (1, 5))], {"x": "16000 samples"}),
    "spectrum": ([TensorSpec("x", F, (1, 1, 257))], [TensorSpec("mask", F, (1, 1, 257))], {"x": "spectrum = {}"}),
    "large spectrum": ([TensorSpec("x", F, (1, 8, 513))], [TensorSpec("y", F, (1, 2))], {"x": "fft_size = 1024"}),
    "any picture": (
        [TensorSpec("x", F, ("n", "high", "wide", 3))],
        [TensorSpec("y", F, ("n", 4, 4, 2))],
        {"x": "width = 224, height = 224, layout"},
    ),
    "odd": ([TensorSpec("x", F, (1, 2, 3, 4, 5, 6, 7))], [TensorSpec("y/z:0", F, ())], {"x": "value"}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_draft_is_a_valid_recipe(name: str) -> None:
    inputs, outputs, expected = GRAPHS[name]
    text = draft(f"{name}.onnx", inputs, outputs)
    read = recipe.parse(text)
    (model,) = read.models.values()
    recipe.check_tensors("m", model, inputs, outputs)
    for tensor, words in expected.items():
        section = text.split(f"inputs.{tensor}]")[1].split("\n\n")[0]
        assert words in section
    assert "GUESS" in text


def test_states_are_guessed_by_shape_and_name() -> None:
    inputs = [TensorSpec("x", F, (1, 4)), TensorSpec("h0", F, (1, 8)), TensorSpec("c0", F, (1, 8))]
    outputs = [TensorSpec("y", F, (1, 4)), TensorSpec("hn", F, (1, 8)), TensorSpec("cn", F, (1, 8))]
    assert guess_states(inputs, outputs) == (StatePair("h0", "hn"), StatePair("c0", "cn"))
    assert guess_states(inputs[:1], outputs[:1]) == ()


def test_states_are_guessed_by_shape_alone_behind_what_the_model_is_for() -> None:
    inputs = [TensorSpec("input_2", F, (1, 1, 257)), TensorSpec("input_3", F, (1, 2, 128, 2))]
    outputs = [TensorSpec("activation", F, (1, 1, 257)), TensorSpec("stack", F, ("n", 2, 128, 2))]
    assert guess_states(inputs, outputs) == (StatePair("input_3", "stack"),)
    assert guess_states(inputs[:1], outputs) == (), "a mask of the shape of its input is no state"
    pictures = [TensorSpec("left", F, (1, 3, 8, 8)), TensorSpec("right", F, (1, 3, 8, 8))]
    assert guess_states(pictures, [TensorSpec("depth", F, (1, 3, 8, 8))]) == ()
    assert guess_states([TensorSpec("x", F, (1, 4)), TensorSpec("scale", F, (1,))], [TensorSpec("y", F, (1, 4)),
                        TensorSpec("z", F, (1,))]) == (), "a single number is none"  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([TensorSpec("x", F, ("n", 3, "high", "wide"))], ["high = 224, n = 1, wide = 224", 'hop = "40 ms"']),
        ([TensorSpec("x", F, (None, None))], ["x_dim0 = 1, x_dim1 = 16000", 'hop = "100 ms"']),
        ([TensorSpec("x", F, (1, 40, "t"))], ["t = 100", 'hop = "100 ms"']),
        ([TensorSpec("x", F, (1, 576))], ['hop = "576 samples"']),
        ([TensorSpec("x", F, (1, 1, 257))], ['hop = "128 samples"']),
        ([TensorSpec("x", F, (1, 576)), TensorSpec("v", F, (1, 3, 8, 8))], ['hop = "100 ms"']),
    ],
)
def test_sizes_that_a_graph_leaves_open_and_the_hop_go_with_the_inputs(
    inputs: list[TensorSpec], expected: list[str]
) -> None:
    text = draft("m.onnx", inputs, [TensorSpec("softmax_2", F, (1, 2))])
    for words in expected:
        assert words in text
    assert 'decode = "argmax"' in text
