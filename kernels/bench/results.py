"""What a run of the benchmarks has found: rows, proofs, what is missing; saved after every case, read to go on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ATTEMPTS = 2


@dataclass(frozen=True)
class Time:
    """Device time of one round in microseconds, between two events."""

    median_us: float
    p99_us: float


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    case: str
    candidate: str
    stream: Time
    graph: Time | None
    host_us: float
    """What the host takes to start a round, in the stream."""
    floor_us: float
    floor_of: str
    moved_bytes: float
    note: str = ""


@dataclass
class Part:
    """One part of a run and the file that it is saved in."""

    path: Path | None
    device: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    proofs: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    done: dict[str, float] = field(default_factory=dict)
    """The cases that are finished, and the seconds that each took."""
    attempts: dict[str, int] = field(default_factory=dict)
    """How often each case was begun: one that twice did not end is not begun again."""
    left: list[str] = field(default_factory=list)
    """The cases that time did not suffice for."""

    def lacks(self, what: str) -> None:
        """Note what could not be measured, once."""
        if what not in self.missing:
            self.missing.append(what)
            print(f"missing: {what}", flush=True)

    def begin(self, case: str) -> bool:
        """Note that a case is begun, and save. False: it is finished, or it never ends."""
        if case in self.done:
            return False
        if self.attempts.get(case, 0) >= ATTEMPTS:
            words = f"{case}: begun {ATTEMPTS} times, and not ended: it hangs, crashes, or needs more time"
            if words not in self.failed:
                self.failed.append(words)
            return False
        self.attempts[case] = self.attempts.get(case, 0) + 1
        self.save()
        return True

    def finish(self, case: str, seconds: float) -> None:
        """Note that a case is finished, and save."""
        self.done[case] = round(seconds, 2)
        self.save()

    def save(self) -> None:
        """Write the file anew; it is whole at any time."""
        if self.path is None:
            return
        values = {key: value for key, value in vars(self).items() if key not in ("path", "rows")}
        values["rows"] = [asdict(row) for row in self.rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(temporary, self.path)

    @classmethod
    def load(cls, path: Path) -> Part:
        """Read a file that `save` wrote. Rows of a case that was not finished are left out."""
        values = json.loads(path.read_text())
        rows = [
            Row(**{**row, "stream": Time(**row["stream"]), "graph": Time(**row["graph"]) if row["graph"] else None})
            for row in values.pop("rows")
        ]
        part = cls(path, **values)
        part.rows = [row for row in rows if row.case in part.done]
        return part


def times(rows: Sequence[Row], case: str) -> dict[str, Time]:
    """The candidates' times in the stream."""
    return {row.candidate: row.stream for row in rows if row.case == case}


def cases(rows: Sequence[Row], start: str) -> list[str]:
    """The cases whose names start so, in order."""
    return list(dict.fromkeys(row.case for row in rows if row.case.startswith(start)))


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""

    def shown(time: Time | None) -> str:
        return f"{time.median_us:.1f} / {time.p99_us:.1f}" if time else "-"

    lines = [
        "| case | candidate | stream, us p50/p99 | graph, us p50/p99 | host, us | floor, us | of | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.case, row.candidate, shown(row.stream), shown(row.graph), f"{row.host_us:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row.floor_us:.2f}", row.floor_of, row.note]) + " |")
    return "\n".join(lines)
