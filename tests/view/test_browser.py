"""The page in a real browser: what it shows is what was made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from browser import Browser, Page, require_browser
from sample_results import result

import edgemm
from edgemm import recipe as recipes
from edgemm.errors import SinkError
from edgemm.stream.accounting import ModelAccount, StreamAccount
from edgemm.stream.decode import Label, Score, Values, Vector
from edgemm.stream.frames import AudioChunk, End, StreamInfo, VideoFrame
from edgemm.stream.results import Latency
from edgemm.stream.sinks.protocol import Run, Snapshot
from edgemm.view.view import View

require_browser()

pytestmark = pytest.mark.real_time

DEMO = Path(__file__).parents[2] / "calibration" / "av_digits"
RECIPE = recipes.load(DEMO / "recipe.toml")
SHOTS = os.environ.get("EDGEMM_SCREENSHOTS")
"""A folder to leave pictures of the page in, for people."""

TWO_MODELS = """
edgemm = 1
name = "door <b>&amp;</b>"
[streams.mic]
kind = "audio"
[streams.front]
kind = "video"
[streams.back]
kind = "video"
[models.vad]
file = "vad.onnx"
hop = "100 ms"
[models.vad.inputs.sound]
stream = "mic"
window = "1600 samples"
[models.faces]
file = "faces.onnx"
hop = "100 ms"
[models.faces.inputs.pictures]
stream = "back"
image = { width = 16, height = 12 }
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def a_run(recipe: recipes.Recipe = RECIPE, clock: Literal["wall", "virtual"] = "wall", live: Any = ()) -> Run:
    infos = [
        StreamInfo(name, "audio" if isinstance(stream, recipes.AudioStream) else "video")
        for name, stream in recipe.streams.items()
    ]
    return Run(recipe, infos, frozenset(live), clock)


def picture(at_ms: int, rgb: tuple[int, int, int], stream: str = "camera") -> VideoFrame:
    image = np.empty((48, 64, 3), np.uint8)
    image[:] = rgb
    return VideoFrame(stream, 0, Fraction(1, 1000), at_ms * 10**6, image, "rgb")


def sound(at_ms: int, amplitude: float) -> AudioChunk:
    samples = np.resize(np.array([amplitude, -amplitude], np.float32), 160)
    return AudioChunk("mic", 0, Fraction(1, 16000), at_ms * 10**6, samples, 16000)


def shot(page: Page, name: str) -> None:
    if SHOTS is not None:
        page.screenshot(Path(SHOTS) / f"{name}.png")


def pixel(page: Page, stream: str = "camera") -> list[int]:
    """The colour in the middle of the picture that is drawn."""
    return page.evaluate(  # type: ignore[no-any-return]
        f"""(() => {{ const c = document.querySelector('figure[data-stream="{stream}"] canvas');
        return [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data].slice(0, 3); }})()"""
    )


def drawn(page: Page, plot: str, color: str) -> int:
    """How many pixels of a plot have one of the palette's colours."""
    return page.evaluate(  # type: ignore[no-any-return]
        f"""(() => {{ const c = document.querySelector('#{plot} .plot canvas');
        const style = getComputedStyle(document.documentElement).getPropertyValue('{color}').trim();
        const want = [1, 3, 5].map((i) => parseInt(style.slice(i, i + 2), 16));
        const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let count = 0;
        for (let i = 0; i < data.length; i += 4)
          if (data[i + 3] > 200 && want.every((v, k) => Math.abs(data[i + k] - v) < 24)) count++;
        return count; }})()"""
    )


def test_the_numbers_on_the_page_are_those_of_the_run(browser: Browser, tmp_path: Path) -> None:
    bundle = tmp_path / "demo.edgemm"
    edgemm.build(DEMO / "recipe.toml", bundle, precision="fp32")
    lines, summary = tmp_path / "results.jsonl", tmp_path / "summary.json"
    words = ["run", bundle, "-i", DEMO / "clip.mkv", "--view", ":0", "-o", lines, "--summary", summary, "--duration", 6]
    run = subprocess.Popen(
        [sys.executable, "-m", "edgemm", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    said = run.stderr.readline()
    assert said.startswith("view: http://127.0.0.1:")
    with browser.open(said.split()[1]) as page:
        page.wait_for("document.body.dataset.state === 'running'")
        page.wait_for("Number(document.querySelector('figure canvas').dataset.pictures) > 10")
        assert page.evaluate("document.title") == "av-digits · edgemm"
        assert page.text("figure .badge .pill") in ("live", "stalled")
        page.wait_for("document.body.dataset.state === 'ended'", 30)
        shot(page, "ended")
        _, rest = run.communicate(timeout=30)
        assert run.returncode == 0, rest
        results = [json.loads(line) for line in lines.read_text().splitlines()]
        last = results[-1]

        def number(key: str) -> str | None:
            return page.text(f'[data-model="av"] [data-key="{key}"]')

        assert len(results) > 5  # some sixty, unless the machine is very busy
        assert number("results") == str(len(results))
        assert number("step") == str(last["step"])
        assert number("time") == f"{last['time_ms'] / 1000:.3f}"
        for key in ("audio_age", "video_age", "skew"):
            assert number(key) == f"{last[f'{key}_ms']:.1f}", key
        assert number("latency") == f"{last['latency_ms']['total']:.1f}"
        assert page.text('[data-output="digit"] [data-key="value"]') == last["outputs"]["digit"]["label"]
        assert (
            page.text('[data-output="digit"] [data-key="score"]') == f"{last['outputs']['digit']['score'] * 100:.0f} %"
        )
        assert page.text('[data-output="match"] [data-key="value"]') == (
            "yes" if last["outputs"]["match"]["above"] else "no"
        )
        books = json.loads(summary.read_text())
        for stream, account in books["streams"].items():
            cells = f"document.querySelector('#streams-table tr[data-name={stream}]').cells"
            row = page.evaluate(f"[...{cells}].map((cell) => cell.textContent)")
            assert row[2:4] == [str(account["captured"]), str(account["used"])]
            dropped = ", ".join(f"{count} {cause.replace('_', ' ')}" for cause, count in account["dropped"].items())
            assert row[-1] == (dropped or "0")
        made = page.evaluate("document.querySelector('#models-table tr[data-name=av]').cells[2].textContent")
        assert made == str(books["models"]["av"]["made"]) == str(len(results))
        for plot, color in (("age", "--s1"), ("skew", "--s0"), ("sound", "--s0")):
            assert drawn(page, plot, color) > 50, plot
        # It looks for the next run, and nobody listens any more.
        assert [error for error in page.errors if "ERR_CONNECTION_REFUSED" not in error] == []


def test_pictures_results_and_level_are_drawn(browser: Browser) -> None:
    with View(":0") as view, browser.open(view.url, dark=True) as page:
        page.wait_for("document.querySelector('#state').textContent === 'starting'")
        view.begin(a_run())
        page.wait_for("document.querySelector('figure')")
        view.event(picture(0, (220, 20, 40)))
        view.event(sound(0, 0.5))
        outputs: dict[str, Any] = {
            "kind": Label("<img src=x onerror=alert(1)>", 0, 0.4),
            "logit": Label("big", 1, 12.5),
            "match": Score(0.25, False),
            "face": Vector(np.array([0.6, 0.8], np.float32)),
            "raw": Values(np.array([1.5, np.nan])),
        }
        view.write(result(3, outputs=outputs, latency=Latency(0, 0, 0, 0, 0, 0, 2_340_000), in_sync=False))
        page.wait_for("document.querySelector('figure canvas').dataset.pictures")
        page.wait_for("document.querySelector('[data-output=raw]')")
        assert np.abs(np.array(pixel(page)) - (220, 20, 40)).max() < 12
        shown = {
            name: [page.text(f'.drawn [data-output="{name}"] [data-key="{key}"]') for key in ("value", "score")]
            for name in outputs
        }
        assert shown == {
            "kind": ["<img src=x onerror=alert(1)>", "40 %"],  # text, not an element
            "logit": ["big", "12.50"],
            "match": ["no", "25 %"],
            "face": ["1.000", "norm of 2"],
            "raw": ["1.5 nan", "[2]"],
        }
        assert page.text('[data-key="latency"]') == "2.3"
        assert page.evaluate("document.querySelector('[data-key=skew]').parentElement.dataset.tone") == "bad"
        bar = page.evaluate("document.querySelector('[data-output=kind] .bar i').style.width")
        assert bar == "40%"
        page.wait_for("document.querySelector('#sound .legend b').textContent === '-6.0 dBFS'")
        level = page.evaluate("document.querySelector('.meter i').style.transform")
        assert float(re.findall(r"[\d.]+", level)[0]) == pytest.approx(1 - 6.02 / 60, abs=0.001)
        view.event(picture(100, (10, 200, 30)))
        page.wait_for("document.querySelector('figure canvas').dataset.pictures === '2'")
        assert np.abs(np.array(pixel(page)) - (10, 200, 30)).max() < 12
        assert page.errors == []


def test_how_streams_are_is_shown(browser: Browser) -> None:
    with View(":0") as view, browser.open(view.url) as page:
        view.begin(a_run(live=["camera"]))
        state = "document.querySelector('figure').dataset.state"
        page.wait_for(f"{state} === 'waiting'")
        view.event(picture(0, (1, 2, 3)))
        page.wait_for(f"{state} === 'live'")
        page.wait_for(f"{state} === 'stalled'")
        view.event(End("camera", 10**9))
        page.wait_for(f"{state} === 'reconnecting'")
        assert page.text("figure .pill") == "reconnecting"
        view.event(End("mic", 10**9))
        page.wait_for("document.querySelector('#sound .pill').textContent === 'ended'")


def test_losses_are_drawn_in_the_second_in_which_they_happened(browser: Browser) -> None:
    with View(":0") as view, browser.open(view.url) as page:
        view.begin(a_run(clock="virtual"))
        for second in range(20):
            view.event(picture(second * 1000, (0, 0, 0)))
            lost = 0 if second < 10 else 30
            frames = StreamAccount(100 + second, 100 + second - lost, {"queue_full": lost} if lost else {})
            view.look(Snapshot({"camera": frames}, {"av": ModelAccount(50, 45, {"late": 5})}, {}, {}))
        page.wait_for("document.querySelector('#losses .legend b').textContent === '30 in all'")
        assert [page.text(f"#losses .legend span:nth-child({i}) b") for i in (1, 2)] == ["30 in all", "5 in all"]
        assert drawn(page, "losses", "--s1") > 200
        # The tables below may bring a scroll bar, and with it another width.
        page.wait_for("document.querySelector('#models-table tr[data-name=av]')")
        page.wait_for("document.querySelector('figure canvas').dataset.pictures")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        # The pointer asks for the ninth second before now, in which 30 frames were lost.
        rect = page.evaluate(
            "(({x, y, width}) => [x, y, width])(document.querySelector('#losses canvas').getBoundingClientRect())"
        )
        x = rect[0] + 34 + (rect[2] - 34) * (1 - 8.5 / 30)
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=rect[1] + 40)
        page.wait_for("document.querySelector('#losses .legend b').textContent === '30 in this second'")
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 40, y=rect[1] + 40)
        page.wait_for("document.querySelector('#losses .legend b').textContent === '0 in this second'")
        assert page.text("#models-table tr[data-name=av] .causes") == "5 late"


def test_several_streams_and_models(browser: Browser) -> None:
    recipe = recipes.parse(TWO_MODELS)
    with View(":0") as view, browser.open(view.url) as page:
        view.begin(a_run(recipe))
        page.wait_for("document.querySelectorAll('figure').length === 2")
        assert page.text("#name") == "door <b>&amp;</b>"
        view.event(picture(0, (250, 0, 0), "front"))
        view.event(picture(0, (0, 0, 250), "back"))
        view.write(result(1, model="vad", outputs={"speech": Score(0.9, True)}, video_age_ns=None, skew_ns=None))
        view.write(result(1, model="faces", outputs={"who": Label("ann", 0, 0.8)}, audio_age_ns=None, skew_ns=None))
        page.wait_for("document.querySelector('[data-output=who]')")
        # Each is drawn on the picture that it sees, and what only listens on the first.
        assert page.text('figure[data-stream="back"] [data-of="faces"] [data-key="value"]') == "ann"
        assert page.text('figure[data-stream="front"] [data-of="vad"] [data-key="value"]') == "yes"
        assert page.text('figure[data-stream="back"] .what') == "faces · who"
        page.wait_for("[...document.querySelectorAll('figure canvas')].every((c) => c.dataset.pictures)")
        assert pixel(page, "front")[0] > 200
        assert pixel(page, "back")[2] > 200
        page.wait_for("document.querySelector('#age .legend').textContent.includes('21.5')")
        legend = page.evaluate("[...document.querySelectorAll('#age .legend span')].map((s) => s.textContent)")
        assert legend == ["vad sound6.5 ms", "faces picture21.5 ms"]
        assert page.errors == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_both_schemes(browser: Browser, dark: bool) -> None:
    with View(":0") as view, browser.open(view.url, width=390, height=844, dark=dark) as page:
        view.begin(a_run())
        view.event(picture(0, (60, 60, 60)))
        view.event(sound(0, 0.2))
        view.write(result(1))
        view.look(
            Snapshot({"mic": StreamAccount(1, 1), "camera": StreamAccount(1, 1)}, {"av": ModelAccount(1, 1)}, {}, {})
        )
        page.wait_for("document.querySelector('#streams-table tr[data-name=mic]')")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(14, 16, 19)" if dark else "rgb(244, 245, 247)")
        shot(page, f"phone_{'dark' if dark else 'light'}")


def test_the_page_comes_back_with_the_next_run(browser: Browser) -> None:
    with View(":0") as view:
        where = view.url[7:-1]
        page = browser.open(view.url)
        with page:
            view.begin(a_run())
            view.write(result(5))
            page.wait_for("document.querySelector('[data-key=step]')?.textContent === '5'")
            view.__exit__(SinkError, SinkError("The disk is full."), None)
            page.wait_for("document.body.dataset.state === 'failed'")
            assert page.text("#note") == "The disk is full."
            assert page.text("[data-key=step]") == "5"  # the last of it stays
            with View(where) as again:
                again.begin(a_run(recipes.parse(TWO_MODELS)))
                page.wait_for("document.querySelectorAll('figure').length === 2")
                assert page.text("#state") == "running"
                again._server.__exit__(None, None, None)  # without a last word, as after kill -9
                page.wait_for("document.querySelector('#state').textContent === 'connection lost'")


def test_elsewhere_the_printed_url_opens_the_page(browser: Browser) -> None:
    with View("0.0.0.0:0") as view:
        place, _, query = view.url.partition("/?")
        here = f"http://127.0.0.1:{place.rpartition(':')[2]}/"
        view.begin(a_run())
        with browser.open(f"{here}?{query}") as page:
            page.wait_for("document.body.dataset.state === 'running'")
        with browser.open(here) as page:
            page.wait_for("document.body.innerText.includes('token is wrong or missing')")
