"""The command line as a user meets it: words, files and exit codes, in processes of its own."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgemm.demo import folder

DATA = folder()
CLIP = DATA / "clip.mkv"


def cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgemm", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300
    )


def fails(code: int, words: str, *arguments: object) -> None:
    done = cli(*arguments)
    assert done.returncode == code, done
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("edgemm: ") for line in done.stderr.splitlines()) <= 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "demo.edgemm"
    done = cli("build", "engine", DATA / "recipe.toml", "-o", path, "--precision", "int8", "--json", f"{path}.json")
    assert done.returncode == 0, done.stderr
    assert "Wrote" in done.stdout
    assert "calibrating on 48 steps (entropy)" in done.stderr
    assert json.loads(Path(f"{path}.json").read_text())["models"][0]["precision"] == "int8"
    return path


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["build"],
        ["build", "engine"],
        ["run"],
        ["profile"],
        ["check"],
        ["inspect"],
        ["recipe"],
        ["doctor"],
        ["demo"],
    ],
)
def test_every_help_has_an_example(command: list[str]) -> None:
    done = cli(*command, "--help")
    assert done.returncode == 0
    assert "edgemm" in done.stdout
    if command not in ([], ["build"]):
        assert "Example" in done.stdout


def test_version() -> None:
    assert cli("--version").stdout.startswith("edgemm 0.")


def test_two_virtual_runs_give_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = cli("run", bundle, "--input", CLIP, "--clock", "virtual", "-o", tmp_path / name, "--duration", 8)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert len(lines) > 60
    assert lines[0]["outputs"]["digit"]["label"]
    assert all(line["audio_age_ms"] >= 0 and "skew_ms" in line for line in lines)
    assert "mic" in done.stdout
    on_stdout = cli("run", bundle, "--input", CLIP, "--clock", "virtual", "-o", "-", "--duration", 8)
    assert on_stdout.stdout.encode() == (tmp_path / "a").read_bytes()
    assert "mic" in on_stdout.stderr


def test_a_wall_clock_run_measures_latency(bundle: Path, tmp_path: Path) -> None:
    done = cli(
        "run", bundle, "--input", CLIP, "-o", tmp_path / "r.jsonl", "--duration", 2.5, "--summary", tmp_path / "s.json"
    )
    assert done.returncode == 0, done.stderr
    line = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[-1])
    assert line["latency_ms"]["inference"] > 0
    summary = json.loads((tmp_path / "s.json").read_text())
    for stream in summary["streams"].values():
        assert stream["captured"] == stream["used"] + sum(stream["dropped"].values()) + stream["in_flight"]


def test_run_shows_results_without_an_output(bundle: Path) -> None:
    done = cli("run", bundle, "--input", CLIP, "--clock", "virtual", "--duration", 2)
    assert done.returncode == 0
    assert "digit" in done.stdout
    assert "match" in done.stdout


def test_profile_prints_and_compares(bundle: Path, tmp_path: Path) -> None:
    first = cli("profile", bundle, "-n", 20, "--json", tmp_path / "p.json", "--trace", tmp_path / "t.json")
    assert first.returncode == 0, first.stderr
    assert "stages account for" in first.stdout
    assert "QLinearConv" in first.stdout
    again = cli("profile", bundle, "-n", 20, "--baseline", tmp_path / "p.json", "--input", CLIP)
    assert again.returncode == 0, again.stderr
    assert "p50 / baseline" in again.stdout
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_check_inspect_recipe_doctor(bundle: Path, tmp_path: Path) -> None:
    model = DATA / "av_digits.onnx"
    assert cli("check", model).returncode == 0
    assert json.loads(cli("check", model, "--engine", "tensorrt", "--json").stdout)["ok"] is True
    assert "Conv" in cli("inspect", model).stdout
    facts = json.loads(cli("inspect", bundle, "--json").stdout)
    assert facts["models"]["av"]["variants"]["int8"]["agreement"] >= 0.99
    assert "int8" in cli("inspect", bundle).stdout
    drafted = cli("recipe", model, "-o", tmp_path / "recipe.toml")
    assert drafted.returncode == 0
    fails(2, "exists and was left as it is", "recipe", model, "-o", tmp_path / "recipe.toml")
    assert "[streams.mic]" in cli("recipe", model).stdout
    built = cli("build", "engine", tmp_path / "recipe.toml", "-o", tmp_path / "x.edgemm", "--precision", "fp32", "-q")
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    findings = json.loads(cli("doctor", "--json").stdout)
    assert {"python", "onnxruntime", "cache"} <= {finding["what"] for finding in findings}
    assert "numpy" in cli("doctor").stdout


def test_bad_input_is_one_sentence(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes((DATA / "av_digits.onnx").read_bytes()[:100_000])
    flipped = tmp_path / "flipped.edgemm"
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    out = tmp_path / "o.edgemm"
    fails(1, "is not an ONNX model", "build", "engine", text, "-o", out)
    fails(1, "cut", "build", "engine", cut, "-o", out)
    fails(1, "There is no file", "check", tmp_path / "none.onnx")
    fails(1, "is damaged or was changed", "run", flipped, "--input", CLIP)
    fails(1, "is damaged or was changed", "inspect", flipped)
    fails(1, "is empty", "run", bundle, "--input", empty)
    fails(2, "Nothing to run on", "run", bundle)
    fails(2, "No such option", "run", bundle, "--inputs", "x")
    fails(2, "not in fp16", "run", bundle, "--input", CLIP, "--precision", "fp16")
    fails(2, "Cannot read the profile", "profile", bundle, "--baseline", tmp_path / "none.json")
    fails(
        1,
        "does not exist",
        "build",
        "engine",
        DATA / "recipe.toml",
        "-o",
        tmp_path / "no" / "o.edgemm",
        "--precision",
        "fp32",
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((DATA / "recipe.toml").read_text().replace("inputs.audio", "inputs.sound"))
    (tmp_path / "av_digits.onnx").write_bytes((DATA / "av_digits.onnx").read_bytes())
    fails(2, 'has no input "sound", expected one of: "audio", "video"', "build", "engine", recipe, "-o", out)
    assert not out.exists()


def test_reports_that_cannot_be_written_are_one_sentence(bundle: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "file"
    words = f"{nowhere}: No such file or directory"
    fails(1, words, "recipe", DATA / "av_digits.onnx", "-o", nowhere)
    build = ("build", "engine", DATA / "recipe.toml", "-o", tmp_path / "o.edgemm")
    fails(1, words, *build, "--precision", "fp32", "--json", nowhere)
    fails(1, words, *build, "--precision", "int8", "--export-ranges", nowhere)
    run = ("run", bundle, "--input", CLIP, "--clock", "virtual", "--duration", 2, "-q")
    fails(1, words, *run, "--summary", nowhere)


def test_bad_calibration_is_one_sentence(tmp_path: Path) -> None:
    for name, arrays, words in (
        (
            "shape",
            {"audio": np.zeros((1, 40, 99), np.float32), "video": np.zeros((1, 8, 32, 32), np.float32)},
            "[1, 40, 99]",
        ),
        (
            "nan",
            {"audio": np.full((1, 40, 100), np.nan, np.float32), "video": np.zeros((1, 8, 32, 32), np.float32)},
            "NaN",
        ),
        (
            "one",
            {"audio": np.zeros((1, 40, 100), np.float32), "video": np.zeros((1, 8, 32, 32), np.float32)},
            "at least 2",
        ),
    ):
        cal = tmp_path / name
        cal.mkdir()
        np.savez(cal / "0.npz", **arrays)
        fails(
            1,
            words,
            "build",
            "engine",
            DATA / "recipe.toml",
            "-o",
            tmp_path / "o",
            "--precision",
            "int8",
            "--calibration",
            cal,
        )
    assert not (tmp_path / "o").exists()


def interrupt(*arguments: object, after: str | float) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    seen = ""
    if isinstance(after, str):
        assert process.stderr is not None
        while after not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
    else:
        time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, seen + err


def test_ctrl_c_in_a_run_keeps_what_was_written_and_sums_up(bundle: Path, tmp_path: Path) -> None:
    code, out, err = interrupt("run", bundle, "--input", CLIP, "-o", tmp_path / "r.jsonl", after=5.0)
    assert code == 0, err
    assert "Interrupted after" in out
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert lines
    assert all(json.loads(line)["model"] == "av" for line in lines)
    assert "Traceback" not in err


def test_ctrl_c_in_a_build_leaves_the_old_bundle(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.edgemm"
    target.write_bytes(bundle.read_bytes())
    code, _, err = interrupt("build", "engine", DATA / "recipe.toml", "-o", target, after="calibrating")
    assert code == 1
    assert "edgemm: interrupted" in err
    assert "Traceback" not in err
    assert target.read_bytes() == bundle.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["o.edgemm"]


def test_a_full_disk_is_one_sentence(bundle: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full: run on Linux")
    done = cli("run", bundle, "--input", CLIP, "--clock", "virtual", "-o", "/dev/full")
    assert done.returncode == 1
    assert os.strerror(errno.ENOSPC) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_drama(bundle: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m edgemm run {bundle} --input {CLIP} --clock virtual | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    done = cli("demo", "--seconds", 6, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo.edgemm").exists()
    scores = [line.split() for line in done.stdout.splitlines() if line.startswith(("test set", "clip"))]
    assert len(scores) == 9
    clean = [line for line in scores if "clean" in line]
    assert all(float(line[-2]) >= 0.99 and float(line[-1]) >= 0.88 for line in clean)
    assert "age of the sound" in done.stdout
