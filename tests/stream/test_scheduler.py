from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.stream.accounting import AccountingError, ModelAccount, StreamAccount
from edgemm.stream.scheduler import (
    GAP_NS,
    OVERLOAD,
    VIDEO_GAP_NS,
    DegradedMode,
    ModelPlan,
    Policy,
    Scheduler,
    Step,
    StreamPlan,
)
from edgemm.stream.sync import AudioNeed, VideoNeed

MS = 10**6
RATE_HZ = 16000
MIC = StreamPlan("mic", "audio", RATE_HZ)
CAMERA = StreamPlan("camera", "video", interval_ns=40 * MS)
SECOND = AudioNeed("mic", RATE_HZ)


def av(**changes: object) -> ModelPlan:
    plan = {
        "name": "av",
        "hop_ns": Fraction(100 * MS),
        "audio": (AudioNeed("mic", RATE_HZ // 5),),
        "video": (VideoNeed("camera", 2, 40 * MS),),
    }
    return ModelPlan(**{**plan, **changes})  # type: ignore[arg-type]


@dataclass(order=True)
class Arrival:
    """One frame on its way to the scheduler."""

    now_ns: int
    stream: str
    capture_ns: int = 0
    samples: int = 0
    discontinuity: bool = False
    fate: str = "arrives"


@dataclass
class Told:
    """What a scheduler was asked for, in order."""

    steps: list[Step] = field(default_factory=list)
    made_ns: list[int] = field(default_factory=list)


def sound(until_ms: int, block_ms: int = 10, start_ms: int = 0) -> list[Arrival]:
    return [
        Arrival((at + block_ms) * MS, "mic", at * MS, RATE_HZ * block_ms // 1000)
        for at in range(start_ms, until_ms, block_ms)
    ]


def pictures(until_ms: int, every_ms: int = 40, start_ms: int = 0, delay_ms: int = 0) -> list[Arrival]:
    return [Arrival((at + delay_ms) * MS, "camera", at * MS) for at in range(start_ms, until_ms, every_ms)]


def play(
    scheduler: Scheduler,
    arrivals: list[Arrival],
    inference_ns: int | dict[str, int] = 0,
    scores: dict[str, list[float]] | None = None,
) -> Told:
    """A discrete-event simulation: one engine that takes `inference_ns` a step, and frames that come when they come."""
    told = Told()
    arrivals = sorted(arrivals, key=lambda a: a.now_ns)
    took_ns: dict[str, int] = inference_ns if isinstance(inference_ns, dict) else {}
    free_ns = now_ns = 0
    end_ns = arrivals[-1].now_ns + 100 * MS

    def deliver(until_ns: int) -> None:
        while arrivals and arrivals[0].now_ns <= until_ns:
            a = arrivals.pop(0)
            if a.fate == "lost":
                scheduler.lost(a.stream, "queue_full")
            elif a.fate == "end":
                scheduler.end(a.stream, a.now_ns)
            else:
                scheduler.arrive(a.stream, a.capture_ns, a.now_ns, samples=a.samples, discontinuity=a.discontinuity)
                scheduler.floor(a.stream)

    while now_ns <= end_ns:
        # Whatever has come while the engine was busy, then the steps.
        deliver(now_ns)
        scheduler.tick(now_ns)
        while (step := scheduler.next_step(now_ns)) is not None:
            free_ns = now_ns + (took_ns[step.model] if isinstance(inference_ns, dict) else inference_ns)
            told.steps.append(step)
            told.made_ns.append(free_ns)
            queue = (scores or {}).get(step.model)
            score = {"score": queue.pop(0) if queue else 0.0}
            scheduler.done(step, free_ns, score)
            if free_ns > now_ns:
                break
        wake_ns = scheduler.wake_ns()
        coming = [arrivals[0].now_ns] if arrivals else []
        times = [t for t in (*coming, wake_ns) if t is not None and t > now_ns]
        if free_ns > now_ns:
            now_ns = free_ns
        elif times and min(times) <= end_ns:
            now_ns = min(times)
        else:
            break
    deliver(end_ns)
    return told


# The accounting law.

fates = st.sampled_from(["arrives"] * 12 + ["lost", "break", "end", "back"])


@st.composite
def streams_of_frames(draw: st.DrawFn) -> list[Arrival]:
    """Sound and pictures with random rates, jitter, holes, faults and late starts."""
    block_ms = draw(st.sampled_from([5, 10, 21, 100]))
    every_ms = draw(st.sampled_from([16, 33, 40, 125]))
    arrivals: list[Arrival] = []
    at = draw(st.integers(0, 300))
    for fate in draw(st.lists(fates, min_size=5, max_size=60)):
        jitter_ns = draw(st.integers(-2 * MS, 2 * MS))
        delay_ns = draw(st.integers(0, 30 * MS))
        capture_ns = at * MS + jitter_ns
        samples = RATE_HZ * block_ms // 1000
        if fate == "back":
            capture_ns -= draw(st.integers(0, 500)) * MS
        kind = fate if fate in ("lost", "end") else "arrives"
        now_ns = max(0, at * MS) + block_ms * MS + delay_ns
        arrivals.append(Arrival(now_ns, "mic", capture_ns, samples, fate == "break", kind))
        at += block_ms + (draw(st.integers(0, 1500)) if fate == "break" else 0)
    at = draw(st.integers(0, 300))
    for fate in draw(st.lists(fates, min_size=5, max_size=60)):
        capture_ns = at * MS + draw(st.integers(-3 * MS, 3 * MS))
        if fate == "back":
            capture_ns -= draw(st.integers(0, 200)) * MS
        kind = fate if fate in ("lost", "end") else "arrives"
        arrivals.append(
            Arrival(at * MS + draw(st.integers(3 * MS, 60 * MS)), "camera", capture_ns, 0, fate == "break", kind)
        )
        at += every_ms + (draw(st.integers(0, 1500)) if fate == "break" else 0)
    return arrivals


modes = st.sampled_from([(), (DegradedMode("half", 2),), (DegradedMode("small", 1, 1), DegradedMode("both", 3, 1))])


@st.composite
def recipes(draw: st.DrawFn) -> list[ModelPlan]:
    missing = st.sampled_from(["repeat", "zeros", "skip"])
    hop = st.sampled_from([Fraction(20 * MS), Fraction(32 * MS), Fraction(10**9, 30), Fraction(250 * MS)])
    vad = ModelPlan(
        "vad",
        draw(hop),
        audio=(AudioNeed("mic", draw(st.integers(1, 4000)), zeros=draw(st.booleans())),),
        stateful=True,
        priority=draw(st.integers(0, 1)),
    )
    gated = draw(st.booleans())
    fusion = av(
        hop_ns=draw(hop),
        audio=(AudioNeed("mic", draw(st.integers(1, 40)), 160, 400, 400, draw(st.sampled_from([0, 700]))),),
        video=(VideoNeed("camera", draw(st.integers(1, 5)), draw(st.integers(1, 90)) * MS, draw(missing)),),
        gate_model="vad" if gated else None,
        gate=(lambda scores: scores["score"] > 0.5) if gated else None,
        hold_ns=draw(st.sampled_from([0, 100 * MS])),
        feeds=("vad",) if draw(st.booleans()) else (),
        stateful=True,
    )
    eyes = ModelPlan("eyes", draw(hop), video=(VideoNeed("camera", 1, 0, draw(missing)),), modes=draw(modes))
    each = ModelPlan(
        "each",
        None,
        video=(VideoNeed("camera", draw(st.integers(1, 3)), 30 * MS, draw(missing)),),
        hop_pictures=draw(st.integers(1, 3)),
        deadline_ns=draw(st.sampled_from([None, 50 * MS])),
        priority=draw(st.integers(-1, 1)),
        modes=draw(modes),
        stateful=True,
    )
    after = ModelPlan("after", None, feeds=("av",), modes=draw(modes))
    return [vad, fusion, eyes, each, after]


@settings(max_examples=60)
@given(
    arrivals=streams_of_frames(),
    models=recipes(),
    policy=st.sampled_from(["latest", "every", "deadline"]),
    inference_ms=st.sampled_from([0, 1, 9, 40, 300]),
    lag=st.sampled_from([400, 1 << 40]),
    scores=st.lists(st.floats(0, 1), max_size=40),
    complete=st.booleans(),
)
def test_every_frame_and_every_step_is_accounted_for(
    arrivals: list[Arrival],
    models: list[ModelPlan],
    policy: Policy,
    inference_ms: int,
    lag: int,
    scores: list[float],
    complete: bool,
) -> None:
    def run() -> tuple[Told, dict[str, StreamAccount], dict[str, ModelAccount]]:
        scheduler = Scheduler([StreamPlan("mic", "audio", RATE_HZ, lag_samples=lag), CAMERA], models, policy=policy)
        told = play(scheduler, arrivals, inference_ms * MS, {"vad": list(scores)})
        return told, *scheduler.close(complete=complete)

    told, streams, accounts = run()
    for name, stream in streams.items():
        captured = sum(a.stream == name and a.fate != "end" for a in arrivals)
        assert stream.captured == captured
        assert stream.captured == stream.used + sum(stream.dropped.values()) + stream.in_flight
        assert not (complete and stream.in_flight)
    for name, account in accounts.items():
        numbers = [s.number for s in told.steps if s.model == name]
        assert account.made == len(numbers)
        assert account.due == account.made + sum(account.skipped.values()) + account.pending
        assert numbers == sorted(set(numbers))
        assert sum(account.resets.values()) == sum(s.reset is not None for s in told.steps if s.model == name)
        assert sum(account.degraded.values()) == sum(s.mode > 0 for s in told.steps if s.model == name)
    for step, made_ns in zip(told.steps, told.made_ns, strict=True):
        # Nothing from the future, nothing before it was ready.
        assert step.audio_ns is None or step.audio_ns <= step.time_ns
        assert step.video_ns is None or step.video_ns <= step.time_ns
        assert step.time_ns <= step.ready_ns <= made_ns - inference_ms * MS
    # The same again, from the same arrivals.
    again = run()
    assert again == (told, streams, accounts)


def test_numbers_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(AccountingError, match=r'Stream "mic": captured 3, but used 1 \+ dropped 1'):
        StreamAccount(3, 1, {"late": 1}).check("mic")
    with pytest.raises(AccountingError, match=r'Model "av": 3 steps due, but made 1 \+ skipped 1 \+ pending 0 = 2'):
        ModelAccount(3, 1, {"late": 1}).check("av")


# Earliest deadline first.


@settings(max_examples=60)
@given(
    hops_ms=st.tuples(*[st.sampled_from([20, 30, 50, 100])] * 3),
    # Longer than sound is on its way, so that no step is skipped for want of it.
    deadlines_ms=st.tuples(*[st.sampled_from([None, 75, 90, 300])] * 3),
    priorities=st.tuples(*[st.integers(-1, 1)] * 3),
    inference_ms=st.tuples(*[st.sampled_from([1, 12, 45])] * 3),
    policy=st.sampled_from(["every", "deadline"]),
    block_ms=st.sampled_from([10, 70]),
)
def test_the_earliest_deadline_goes_first_and_among_equals_priority(
    hops_ms: tuple[int, ...],
    deadlines_ms: tuple[int | None, ...],
    priorities: tuple[int, ...],
    inference_ms: tuple[int, ...],
    policy: Policy,
    block_ms: int,
) -> None:
    plans = [
        ModelPlan(
            name,
            Fraction(hop * MS),
            (AudioNeed("mic", 160),),
            priority=priority,
            deadline_ns=None if deadline is None else deadline * MS,
        )
        for name, hop, deadline, priority in zip("abc", hops_ms, deadlines_ms, priorities, strict=True)
    ]
    took_ns = {name: ms * MS for name, ms in zip("abc", inference_ms, strict=True)}
    told = play(Scheduler([MIC], plans, policy=policy), sound(1500, block_ms), took_ns)
    assert len(told.steps) > 10
    of = {plan.name: plan for plan in plans}

    def deadline(plan: ModelPlan) -> int:
        return 200 * MS if plan.deadline_ns is None else plan.deadline_ns

    def urgency(step: Step, at_ns: int) -> tuple[int, int]:
        plan = of[step.model]
        # A deadline that the model missed since its last step is still its own.
        if policy == "every" or not step.skipped:
            return step.time_ns + deadline(plan), -plan.priority
        missed_ns = (step.number - step.skipped) * int(plan.hop_ns or 0) + deadline(plan)
        return missed_ns if missed_ns < at_ns else step.time_ns + deadline(plan), -plan.priority

    begun_ns = [made - took_ns[step.model] for step, made in zip(told.steps, told.made_ns, strict=True)]
    for number, (step, at_ns) in enumerate(zip(told.steps, begun_ns, strict=True)):
        if policy == "deadline":
            # Begun within its deadline, and so made at most one inference after it.
            assert at_ns <= step.time_ns + deadline(of[step.model])
        # Whatever was made later had been ready by then, too, and was no more urgent.
        waiting = [other for other in told.steps[number + 1 :] if other.ready_ns <= at_ns]
        assert all(urgency(step, at_ns) <= urgency(other, at_ns) for other in waiting)


def test_a_model_has_a_deadline_of_its_own() -> None:
    need = (AudioNeed("mic", 320),)
    patient = ModelPlan("patient", Fraction(100 * MS), need, deadline_ns=500 * MS)
    hasty = ModelPlan("hasty", Fraction(100 * MS), need, deadline_ns=30 * MS)
    scheduler = Scheduler([MIC], [patient, hasty], policy="deadline")
    told = play(scheduler, sound(1000), inference_ns=40 * MS)
    assert [s.model for s in told.steps[:2]] == ["hasty", "patient"]
    accounts = scheduler.close()[1]
    assert accounts["hasty"].deadlines_missed == accounts["hasty"].made > 0
    assert accounts["patient"].deadlines_missed == 0
    # Sound that stalls is waited for as long as the model says.
    scheduler = Scheduler([MIC], [patient, hasty])
    play(scheduler, [*sound(300), *sound(1000, start_ms=700)])
    accounts = scheduler.close()[1]
    assert accounts["hasty"].skipped["stalled"] > accounts["patient"].skipped.get("stalled", 0)


# Held: waiting for a step that is due soon.


class Known(NamedTuple):
    """How old what the steps say is: on average over time, and when they say it."""

    mean_ms: float
    ages_ms: list[float]
    account: ModelAccount


def known(inference_ms: float, delays_ms: Sequence[float], *, hears: bool = False, at_once: bool = False) -> Known:
    """Many steps under "latest", one due each 40 ms; `at_once` makes each as soon as the engine is free."""
    if hears:
        plan, stream, arrivals = ModelPlan("m", Fraction(40 * MS), (AudioNeed("mic", 160),)), MIC, sound(6000)
    else:
        plan, stream = ModelPlan("m", None, video=(VideoNeed("camera"),), hop_pictures=1), CAMERA
        arrivals = [
            Arrival(round((at * 40 + delay_ms) * MS), "camera", at * 40 * MS) for at, delay_ms in enumerate(delays_ms)
        ]
    scheduler = Scheduler([stream], [plan])
    if at_once:
        scheduler._hold_until = lambda model, now_ns: None  # type: ignore[method-assign]
    told = play(scheduler, arrivals, round(inference_ms * MS))
    ages_ms = [(made_ns - step.time_ns) / MS for step, made_ns in zip(told.steps, told.made_ns, strict=True)]
    # Between two results what is known grows older.
    area = length = 0.0
    for age_ms, (begin_ns, end_ns) in zip(ages_ms, pairwise(told.made_ns), strict=False):
        length_ms = (end_ns - begin_ns) / MS
        area += length_ms * (age_ms + length_ms / 2)
        length += length_ms
    return Known(area / length, ages_ms, scheduler.close()[1]["m"])


@settings(max_examples=60)
@given(
    inference_ms=st.integers(41, 300),
    delays_ms=st.lists(st.integers(5, 9), min_size=150, max_size=150),
    hears=st.booleans(),
)
def test_waiting_for_the_next_picture_makes_what_is_known_younger(
    inference_ms: int, delays_ms: list[int], hears: bool
) -> None:
    waits = known(inference_ms, delays_ms, hears=hears)
    hurries = known(inference_ms, delays_ms, hears=hears, at_once=True)
    assert waits.mean_ms <= hurries.mean_ms * 1.005
    # After the first two, no step is begun on a picture that was there for more than half the time between two, give
    # or take the delays. (For the last, no next one comes.)
    assert max(waits.ages_ms[2:-1]) <= 40 / 2 + 9 + 4 + inference_ms
    assert waits.account.made >= 0.75 * hurries.account.made


def test_how_much_younger() -> None:
    delays_ms = [5.0] * 300
    waits, hurries = known(208, delays_ms), known(208, delays_ms, at_once=True)
    assert max(hurries.ages_ms[2:-1]) > 208 + 35
    assert max(waits.ages_ms[2:-1]) < 208 + 26
    assert waits.mean_ms < hurries.mean_ms - 4


@pytest.mark.parametrize("inference_ms", [1, 30, 40])
def test_an_engine_that_makes_every_step_waits_for_none(inference_ms: int) -> None:
    # One picture in ten comes late, so that the engine has two to make at times.
    delays_ms = [35.0 if at % 10 == 3 else 5.0 for at in range(150)]
    assert known(inference_ms, delays_ms) == known(inference_ms, delays_ms, at_once=True)


def slow_eye(policy: Policy = "latest", deadline_ms: int = 200) -> Scheduler:
    """Pictures have come at 0, 40, ..., 120 ms; both steps made took 60 ms; it is 120 ms, and the last is ready."""
    eye = ModelPlan("eye", None, video=(VideoNeed("camera"),), hop_pictures=1, deadline_ns=deadline_ms * MS)
    scheduler = Scheduler([CAMERA], [eye], policy=policy)
    for begin_ms, at_ms in ((0, 0), (60, 40)):
        scheduler.arrive("camera", at_ms * MS, at_ms * MS)
        scheduler.tick(begin_ms * MS)
        step = scheduler.next_step(begin_ms * MS)
        assert step is not None
        scheduler.done(step, (begin_ms + 60) * MS, {})
    for at_ms in (80, 120):
        scheduler.arrive("camera", at_ms * MS, at_ms * MS)
    return scheduler


def test_a_step_is_held_until_the_next_picture_or_a_fourth_longer() -> None:
    def time_of(step: Step | None) -> int | None:
        return None if step is None else step.time_ns // MS

    scheduler = slow_eye()
    # 17 * (60 + 17) < 23 * 60, the next one is nearer.
    scheduler.tick(143 * MS)
    assert scheduler.next_step(143 * MS) is None
    assert scheduler.wake_ns() == 170 * MS
    scheduler.arrive("camera", 160 * MS, 163 * MS)
    scheduler.tick(163 * MS)
    assert time_of(scheduler.next_step(163 * MS)) == 160
    assert scheduler.close(complete=False)[1]["eye"].skipped == {"superseded": 2}

    scheduler = slow_eye()
    assert scheduler.next_step(143 * MS) is None
    assert scheduler.next_step(169 * MS) is None
    assert time_of(scheduler.next_step(170 * MS)) == 120

    for not_held in (slow_eye("every"), slow_eye("deadline"), slow_eye(deadline_ms=49)):
        assert not_held.next_step(143 * MS) is not None
    # 18 * (60 + 18) > 22 * 60: the one in hand is newer.
    assert time_of(slow_eye().next_step(142 * MS)) == 120


def test_a_step_is_not_held_for_a_camera_that_is_gone() -> None:
    scheduler = slow_eye()
    assert scheduler.next_step(143 * MS) is None
    scheduler.end("camera", 144 * MS)
    assert scheduler.wake_ns() == 144 * MS
    scheduler.tick(144 * MS)
    step = scheduler.next_step(144 * MS)
    assert step is not None
    assert step.time_ns == 120 * MS


def test_no_step_is_held_while_another_model_waits_and_none_starves() -> None:
    eye = ModelPlan("eye", None, video=(VideoNeed("camera"),), hop_pictures=1)
    ear = ModelPlan("ear", Fraction(40 * MS), audio=(AudioNeed("mic", 160),))
    scheduler = Scheduler([CAMERA, MIC], [eye, ear])
    ends = [Arrival(4000 * MS, stream, fate="end") for stream in ("mic", "camera")]
    told = play(scheduler, [*sound(4000), *pictures(4000), *ends], inference_ns=65 * MS)
    # Two models that want an engine for longer than there is: it is never idle.
    begun_ns = [made_ns - 65 * MS for made_ns in told.made_ns]
    assert begun_ns[3:] == told.made_ns[2:-1]
    made = [step.model for step in told.steps]
    assert abs(made.count("eye") - made.count("ear")) <= 2


# A step with each picture.


def test_a_model_steps_with_every_nth_picture_as_it_comes() -> None:
    each = ModelPlan("each", None, video=(VideoNeed("camera"),), hop_pictures=1)
    third = ModelPlan("third", None, video=(VideoNeed("camera", 2, 40 * MS),), hop_pictures=3)
    scheduler = Scheduler([CAMERA], [each, third])
    told = play(scheduler, pictures(400, delay_ms=7))
    assert [s.time_ns // MS for s in told.steps if s.model == "each"] == list(range(0, 400, 40))
    assert [s.video for s in told.steps if s.model == "each"] == [((n,),) for n in range(10)]
    assert [s.ready_ns // MS for s in told.steps if s.model == "each"] == [t + 7 for t in range(0, 400, 40)]
    assert [s.video for s in told.steps if s.model == "third"] == [((0, 0),), ((2, 3),), ((5, 6),), ((8, 9),)]
    streams, models = scheduler.close()
    assert streams["camera"].used == 10
    assert models["each"].due == 10


def test_a_slow_model_that_steps_with_pictures_takes_the_newest() -> None:
    each = ModelPlan("each", None, video=(VideoNeed("camera"),), hop_pictures=1)
    scheduler = Scheduler([CAMERA], [each])
    told = play(scheduler, [*pictures(4000), Arrival(3961 * MS, "camera", fate="end")], inference_ns=200 * MS)
    ages = [made - step.time_ns for step, made in zip(told.steps, told.made_ns, strict=True)]
    assert max(ages) <= (200 + 40) * MS
    assert scheduler.close()[1]["each"].skipped["superseded"] > 75


# Degraded modes.


def test_an_engine_too_slow_for_every_step_makes_every_other_and_says_so() -> None:
    half = av(modes=(DegradedMode("every 2", 2),))
    scheduler = Scheduler([MIC, CAMERA], [half])
    # 150 ms for a step every 100 ms; every 200 ms is enough.
    told = play(scheduler, sound(20_000) + pictures(20_000), inference_ns=150 * MS)
    account = scheduler.close()[1]["av"]
    degraded = [s for s in told.steps if s.mode]
    assert account.degraded == {"every 2": len(degraded)}
    assert len(degraded) > 70
    # In the mode nothing is shed but what the mode sheds; the returns are short, and ever rarer.
    assert account.skipped["degraded"] > 4 * sum(account.skipped.get(cause, 0) for cause in OVERLOAD)
    returns = sum(bool(a.mode and not b.mode) for a, b in pairwise(told.steps))
    assert 1 <= returns <= 3
    # One that was waiting when the mode began is made.
    assert sum(s.number % 2 for s in degraded) <= returns + 1


def test_a_smaller_engine_takes_over_with_its_state_anew() -> None:
    small = av(modes=(DegradedMode("small", 1, 1),), stateful=True)
    scheduler = Scheduler([MIC, CAMERA], [small])
    arrivals = sound(4000) + pictures(4000)
    told = Told()
    arrivals.sort(key=lambda a: a.now_ns)
    free_ns = 0
    for arrival in arrivals:
        scheduler.arrive(arrival.stream, arrival.capture_ns, arrival.now_ns, samples=arrival.samples)
        scheduler.tick(arrival.now_ns)
        if arrival.now_ns >= free_ns and (step := scheduler.next_step(arrival.now_ns)) is not None:
            # The small one is fast enough.
            free_ns = arrival.now_ns + (20 if step.mode else 250) * MS
            told.steps.append(step)
            scheduler.done(step, free_ns, {})
    account = scheduler.close()[1]["av"]
    first = next(i for i, step in enumerate(told.steps) if step.mode)
    assert {step.mode for step in told.steps[first:]} == {1}
    assert [step.reset for step in told.steps].count("mode") == account.resets["mode"] == 1
    assert told.steps[first].reset == "mode"
    assert account.degraded == {"small": len(told.steps) - first}


# When steps fall due.


def test_steps_lie_on_the_grid_and_wait_for_a_full_window() -> None:
    scheduler = Scheduler([MIC, CAMERA], [av()])
    told = play(scheduler, sound(1000) + pictures(1000))
    assert [s.time_ns // MS for s in told.steps] == list(range(200, 1001, 100))
    assert [s.number for s in told.steps] == list(range(2, 11))
    assert told.steps[0].skipped == 1
    assert scheduler.close()[1]["av"].skipped == {"filling": 1}
    # Sound up to the step, the newest pictures at or before: 200 ms is picture 5.
    assert told.steps[0].audio == (3199,)
    assert told.steps[0].audio_ns == 200 * MS
    assert told.steps[0].video == ((4, 5),)
    assert told.steps[1].video == ((6, 7),)  # 280 ms is the newest before 300 ms
    assert told.steps[1].video_ns == 280 * MS


def test_zeros_before_the_start_make_the_first_step_at_once() -> None:
    vad = ModelPlan("vad", Fraction(512 * 10**9, RATE_HZ), (AudioNeed("mic", 576, zeros=True),), stateful=True)
    told = play(Scheduler([MIC], [vad], policy="every"), sound(10_000))
    assert [s.audio[0] for s in told.steps] == [512 * k - 1 for k in range(1, len(told.steps) + 1)]
    assert len(told.steps) == 160_000 // 512
    assert {s.reset for s in told.steps} == {None}


def test_a_picture_that_is_due_is_waited_for_but_no_longer_than_the_tolerance() -> None:
    # A camera that is 25 ms late: the step at 200 ms waits for the picture of 200 ms.
    told = play(Scheduler([MIC, CAMERA], [av()]), sound(1000) + pictures(1000, delay_ms=25))
    assert told.steps[0].video_ns == 200 * MS
    assert told.made_ns[0] == 225 * MS
    # One that is 90 ms late: after 40 ms the step takes what there is.
    told = play(Scheduler([MIC, CAMERA], [av()]), sound(1000) + pictures(1000, delay_ms=90))
    assert told.made_ns[0] == 240 * MS
    assert told.steps[0].video_ns == 120 * MS


def test_a_camera_that_is_gone_does_not_stop_the_sound() -> None:
    arrivals = [*sound(1000), *pictures(300), Arrival(300 * MS, "camera", fate="end")]
    told = play(Scheduler([MIC, CAMERA], [av()]), arrivals)
    assert [s.time_ns // MS for s in told.steps] == list(range(200, 1001, 100))
    assert {s.video_ns for s in told.steps[2:]} == {280 * MS}
    skipping = av(video=(VideoNeed("camera", 2, 40 * MS, "skip"),))
    scheduler = Scheduler([MIC, CAMERA], [skipping])
    play(scheduler, arrivals)
    # Older than tolerance and one interval: 280 ms serves until 360 ms.
    assert scheduler.close()[1]["av"].skipped == {"filling": 1, "no_picture": 7}


def test_sound_that_stalls_costs_the_steps_that_needed_it_and_no_more() -> None:
    arrivals = [*sound(400), *sound(1000, start_ms=700), *pictures(1000)]
    scheduler = Scheduler([MIC, CAMERA], [av()], deadline_ns=150 * MS)
    told = play(scheduler, arrivals)
    assert [s.time_ns // MS for s in told.steps] == [200, 300, 400, 900, 1000]
    # 500 ms is given up at 650 ms; by 710 ms the sound is past 600 and 700 ms, but they lie in the hole.
    assert scheduler.close()[1]["av"].skipped == {"filling": 1, "stalled": 1, "gap": 3}


def test_sound_that_ended_ends_the_steps() -> None:
    arrivals = [*sound(400), Arrival(400 * MS, "mic", fate="end"), *pictures(1001)]
    scheduler = Scheduler([MIC, CAMERA], [av()])
    told = play(scheduler, arrivals)
    assert told.steps[-1].time_ns == 400 * MS
    assert scheduler.close()[1]["av"].skipped["ended"] >= 5


# Discontinuities.


def test_a_gap_in_the_sound_resets_the_state_once() -> None:
    vad = ModelPlan("vad", Fraction(20 * MS), (AudioNeed("mic", 320),), stateful=True)
    scheduler = Scheduler([MIC], [vad])
    told = play(scheduler, sound(200) + sound(400, start_ms=205 + 2 * GAP_NS // MS))
    assert [s.reset for s in told.steps if s.reset] == ["discontinuity"]
    streams, models = scheduler.close()
    assert streams["mic"].discontinuities == 1
    assert models["vad"].resets == {"discontinuity": 1}


def test_jitter_of_timestamps_is_no_discontinuity() -> None:
    blocks = sound(1000)
    for number, block in enumerate(blocks):
        block.capture_ns += (-1) ** number * GAP_NS // 3
    scheduler = Scheduler([MIC], [ModelPlan("vad", Fraction(20 * MS), (AudioNeed("mic", 320),))])
    play(scheduler, blocks)
    assert scheduler.close()[0]["mic"].discontinuities == 0


def test_a_source_that_knows_of_a_loss_is_believed_and_time_never_goes_back() -> None:
    scheduler = Scheduler([MIC, CAMERA], [av()])
    assert scheduler.arrive("mic", 0, 10 * MS, samples=160) == (0, False)
    assert scheduler.arrive("mic", 10 * MS, 20 * MS, samples=160, discontinuity=True) == (1, True)
    assert scheduler.arrive("mic", 0, 30 * MS, samples=160) is None
    assert scheduler.arrive("camera", 40 * MS, 40 * MS) == (0, False)
    assert scheduler.arrive("camera", 40 * MS, 41 * MS) is None
    assert scheduler.arrive("camera", 60 * MS, 60 * MS) == (1, False)
    assert scheduler.arrive("camera", 61 * MS + VIDEO_GAP_NS, 62 * MS + VIDEO_GAP_NS) == (2, True)
    streams, _ = scheduler.close(complete=False)
    assert streams["mic"].dropped == {"out_of_order": 1}
    assert streams["mic"].in_flight == 2
    assert streams["camera"].dropped == {"out_of_order": 1}


# Policies.


@pytest.mark.parametrize(("policy", "cause"), [("latest", "superseded"), ("deadline", "late"), ("every", None)])
def test_an_engine_five_times_too_slow(policy: Policy, cause: str | None) -> None:
    scheduler = Scheduler([MIC, CAMERA], [av(hop_ns=Fraction(20 * MS))], policy=policy, deadline_ns=200 * MS)
    told = play(scheduler, sound(5000) + pictures(5000), inference_ns=100 * MS)
    ages = [made - step.time_ns for step, made in zip(told.steps, told.made_ns, strict=True)]
    skipped = scheduler.close()[1]["av"].skipped
    if cause is None:
        assert set(skipped) <= {"filling"}
        assert ages[-1] > 1000 * MS
    else:
        assert skipped[cause] > 150
        # The deadline plus one inference; "latest" is never behind by more than what came during one inference.
        assert max(ages) <= (300 if policy == "deadline" else 220) * MS


def test_steps_that_become_ready_together_are_all_made_under_latest() -> None:
    told = play(Scheduler([MIC], [ModelPlan("vad", Fraction(20 * MS), (AudioNeed("mic", 320),))]), sound(1000, 100))
    assert len(told.steps) == 50


def test_windows_that_have_fallen_out_of_the_ring_are_overrun() -> None:
    vad = ModelPlan("vad", Fraction(20 * MS), (AudioNeed("mic", 320),))
    scheduler = Scheduler([StreamPlan("mic", "audio", RATE_HZ, lag_samples=1600)], [vad], policy="every")
    play(scheduler, sound(2000), inference_ns=50 * MS)
    assert scheduler.close()[1]["vad"].skipped["overrun"] > 10


def test_a_late_result_is_counted() -> None:
    scheduler = Scheduler([MIC], [ModelPlan("vad", Fraction(100 * MS), (AudioNeed("mic", 320),))], deadline_ns=30 * MS)
    play(scheduler, sound(1000), inference_ns=31 * MS)
    account = scheduler.close()[1]["vad"]
    assert account.deadlines_missed == account.made == 10


def test_among_equal_times_priority_goes_first_unless_it_depends_on_the_other() -> None:
    need = (AudioNeed("mic", 320),)
    hop = Fraction(100 * MS)
    low, high = ModelPlan("low", hop, need), ModelPlan("high", hop, need, priority=5)
    told = play(Scheduler([MIC], [low, high]), sound(300))
    assert [s.model for s in told.steps[:2]] == ["high", "low"]
    dependent = ModelPlan("high", hop, need, priority=5, feeds=("low",))
    told = play(Scheduler([MIC], [low, dependent]), sound(300))
    assert [s.model for s in told.steps[:4]] == ["low", "high", "low", "high"]


# Gates and chains.


def test_a_gate_opens_holds_and_closes_and_the_state_starts_anew() -> None:
    need = (AudioNeed("mic", 320),)
    vad = ModelPlan("vad", Fraction(100 * MS), need)
    asr = ModelPlan(
        "asr",
        Fraction(100 * MS),
        need,
        gate_model="vad",
        gate=lambda scores: scores["score"] > 0.5,
        hold_ns=200 * MS,
        stateful=True,
    )
    scheduler = Scheduler([MIC], [vad, asr])
    told = play(scheduler, sound(1200), scores={"vad": [0, 0.9, 0, 0, 0, 0, 0, 0.9]})
    assert [s.time_ns // MS for s in told.steps if s.model == "asr"] == [200, 300, 400, 800, 900, 1000]
    assert [s.reset for s in told.steps if s.model == "asr"] == [None, None, None, "gate", None, None]
    account = scheduler.close()[1]["asr"]
    assert account.skipped == {"gated": 6}
    assert account.resets == {"gate": 1}


def test_frames_that_a_closed_gate_kept_from_the_model_say_so() -> None:
    vad = ModelPlan("vad", Fraction(100 * MS), (AudioNeed("mic", 320),))
    eyes = ModelPlan(
        "eyes", Fraction(100 * MS), video=(VideoNeed("camera"),), gate_model="vad", gate=lambda scores: False
    )
    scheduler = Scheduler([MIC, CAMERA], [vad, eyes])
    play(scheduler, sound(1000) + pictures(1000))
    camera = scheduler.close()[0]["camera"]
    assert camera.used == 0
    assert camera.dropped == {"gated": 11, "not_needed": 14}


@pytest.mark.parametrize("hop_ms", [40, 100])
def test_a_model_that_hears_nothing_begins_with_its_first_picture(hop_ms: int) -> None:
    eyes = ModelPlan("eyes", Fraction(hop_ms * MS), video=(VideoNeed("camera"),))
    told = play(Scheduler([CAMERA], [eyes], policy="every"), pictures(247, start_ms=7))
    assert [step.time_ns // MS for step in told.steps[:3]] == [7, 7 + hop_ms, 7 + 2 * hop_ms]
    assert [step.number for step in told.steps[:3]] == [1, 2, 3]
    assert told.steps[0].video == ((0,),)


def test_a_model_without_streams_follows_the_one_that_feeds_it() -> None:
    vad = ModelPlan("vad", Fraction(100 * MS), (AudioNeed("mic", 320),))
    head = ModelPlan("head", None, feeds=("vad",))
    tail = ModelPlan("tail", None, feeds=("vad", "head"))
    told = play(Scheduler([MIC], [vad, head, tail]), sound(200))
    assert [(s.model, s.time_ns // MS) for s in told.steps] == [
        (name, time) for time in (100, 200) for name in ("vad", "head", "tail")
    ]


def test_a_model_whose_feed_has_not_run_yet_is_skipped() -> None:
    slow = ModelPlan("slow", Fraction(500 * MS), (AudioNeed("mic", 320),))
    fast = ModelPlan("fast", Fraction(100 * MS), (AudioNeed("mic", 320),), feeds=("slow",))
    scheduler = Scheduler([MIC], [slow, fast])
    told = play(scheduler, sound(1000))
    assert [s.time_ns // MS for s in told.steps if s.model == "fast"] == list(range(500, 1001, 100))
    assert scheduler.close()[1]["fast"].skipped == {"no_input": 4}


# What is kept.


def test_frames_are_released_as_soon_as_no_step_can_want_them() -> None:
    scheduler = Scheduler([MIC, CAMERA], [av()])
    play(scheduler, sound(2000) + pictures(2000))
    # The next step is due at 2100 ms: its pictures are 1960 and the one before.
    assert scheduler.floor("camera") >= 46
    assert scheduler.floor("mic") >= 188


def test_pictures_before_the_sound_are_not_hoarded() -> None:
    scheduler = Scheduler([MIC, CAMERA], [av()])
    for arrival in pictures(60_000):
        scheduler.arrive("camera", arrival.capture_ns, arrival.now_ns)
        floor = scheduler.floor("camera")
    assert floor > 1490
