"""When the engine is too slow for what the recipe asks: which model makes do with less, and when it gets it back.

A ladder for each model: level 0 is what the recipe asks, each further level one of its degraded modes. A model is
overloaded when of its last steps too many were skipped for want of time, or came too late. Then one model goes a level
down: the one of lowest priority that still can. After a while without overload the one of highest priority goes up
again. If that was too soon, the next try waits twice as long: a machine that is just too slow settles, and does not
swing.

No clock and no thread: told of every step with the step's own time, so that equal steps give equal levels.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

JUDGED_STEPS = 20
"""How many of a model's last steps are looked at: two seconds at ten a second."""

TOO_MANY = 5
"""So many of them overloaded, a quarter, is too many: single ones happen on any machine."""

STAY_NS = 5_000_000_000
"""How long a level is kept at least: longer than what starting a program or a stalled disk takes."""

LONGEST_STAY_NS = 60_000_000_000


@dataclass(frozen=True)
class Ladder:
    """One model's: how many degraded modes it has, and its priority."""

    levels: int
    priority: int = 0


class _Place:
    def __init__(self, order: int, ladder: Ladder) -> None:
        self.order = order
        self.ladder = ladder
        self.level = 0
        self.recent: deque[bool] = deque(maxlen=JUDGED_STEPS)
        self.raised_ns = -(1 << 62)
        self.stay_ns = STAY_NS


class Degradation:
    """The levels of all models; `changes` counts how often each went down."""

    def __init__(self, ladders: Mapping[str, Ladder]) -> None:
        self._places = {name: _Place(order, ladder) for order, (name, ladder) in enumerate(ladders.items())}
        self.changes: Counter[str] = Counter()
        self._disturbed_ns = -(1 << 62)
        """When a step was last overloaded, or a level changed."""

    def level(self, model: str) -> int:
        """0, or how far the model is down."""
        return self._places[model].level

    def observe(self, model: str, time_ns: int, *, overloaded: bool) -> None:
        """A step of `model`, due at `time_ns`, was made in time, or skipped or late for want of time."""
        recent = self._places[model].recent
        recent.append(overloaded)
        if overloaded:
            self._disturbed_ns = max(self._disturbed_ns, time_ns)
            if sum(recent) >= TOO_MANY:
                self._lower(model, time_ns)
        else:
            self._raise(time_ns)

    def _lower(self, model: str, time_ns: int) -> None:
        able = [name for name, place in self._places.items() if place.level < place.ladder.levels]
        if not able:
            return
        # Among equals the one that suffers, then the later one: the recipe's first models gate the others.
        name = min(able, key=lambda n: (self._places[n].ladder.priority, n != model, -self._places[n].order))
        place = self._places[name]
        place.stay_ns = (
            min(2 * place.stay_ns, LONGEST_STAY_NS) if time_ns - place.raised_ns < 2 * place.stay_ns else STAY_NS
        )
        place.level += 1
        self.changes[name] += 1
        self._forget()

    def _raise(self, time_ns: int) -> None:
        calm_ns = time_ns - self._disturbed_ns
        able = [place for place in self._places.values() if place.level and calm_ns >= place.stay_ns]
        if able:
            place = max(able, key=lambda p: (p.ladder.priority, -p.order))
            place.level -= 1
            place.raised_ns = self._disturbed_ns = time_ns
            self._forget()

    def _forget(self) -> None:
        """What was seen before a change says nothing of what comes after it."""
        for place in self._places.values():
            place.recent.clear()
