"""Results as JSON Lines, to a file or to standard output."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from types import TracebackType

from edgemm.errors import SinkError
from edgemm.stream.results import Result


class JsonLinesSink:
    """Writes one line of JSON a result to `path`, or to standard output if it is "-".

    Every line goes out at once and whole: whoever reads along never sees half a line, and if the disk is full, the
    lines written before stay, the broken one is taken back, and SinkError is raised.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._file = -1
        self._good_bytes = 0

    @property
    def name(self) -> str:
        """For the accounts."""
        return "jsonl" if self._path == "-" else f"jsonl {self._path}"

    def __enter__(self) -> JsonLinesSink:
        if self._path == "-":
            self._file = os.dup(1)
            return self
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as error:
            raise SinkError(f"Cannot write results to {self._path}: {error.strerror}.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, result: Result) -> None:
        """Write one line. Raises SinkError."""
        line = memoryview(result.to_json() + b"\n")
        size = len(line)
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            self._take_back()
            name = "standard output" if self._path == "-" else self._path
            raise SinkError(
                f"Cannot write results to {name}: {error.strerror}. "
                f"The {self._good_bytes} bytes before are whole lines."
            ) from error
        self._good_bytes += size

    def _take_back(self) -> None:
        # Only a regular file that we began can be cut: not a pipe, and not a file that the shell appends to.
        if self._path != "-" and stat.S_ISREG(os.fstat(self._file).st_mode):
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._good_bytes)
