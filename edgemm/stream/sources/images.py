"""A folder of images as a video stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from edgemm.errors import SourceError
from edgemm.stream.frames import Event, Lost, StreamInfo, VideoFrame, ns
from edgemm.stream.sources.protocol import VideoWant
from edgemm.stream.sources.reformat import PIXEL_FORMATS, Reformatter

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


class ImagesSource:
    """The images of a folder, in the order of their names ("2.png" before "10.png"), at `fps` pictures a second.

    Raises SourceError on entry if the folder holds no image, and at the end if none could be read; a single damaged
    image is entered as lost ("corrupt").
    """

    live = False

    def __init__(self, folder: str | Path, want: VideoWant, fps: float | Fraction = 25) -> None:
        self._folder = Path(folder)
        self._want = want
        # A rate like 29.97 is meant as a short fraction, not as the nearest binary number.
        self._interval = 1 / Fraction(fps).limit_denominator(1001)
        self._files: list[Path] = []
        self.streams: tuple[StreamInfo, ...] = ()

    def __enter__(self) -> ImagesSource:
        try:
            files = [file for file in self._folder.iterdir() if file.suffix.lower() in SUFFIXES]
        except OSError as error:
            raise SourceError(f"Cannot read the folder {self._folder}: {error.strerror}.") from error
        if not files:
            raise SourceError(f"{self._folder} holds no image, expected files like 0001.png ({', '.join(SUFFIXES)}).")
        self._files = sorted(files, key=_natural)
        self.streams = (StreamInfo(self._want.name, "video", interval_ns=ns(1, self._interval)),)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files = []

    def __iter__(self) -> Iterator[Event]:
        reformatter = Reformatter(PIXEL_FORMATS[self._want.color])
        count = 0
        problem = ""
        for number, file in enumerate(self._files):
            capture_ns = ns(number, self._interval)
            try:
                picture = _read(file, reformatter)
            except (OSError, ValueError) as error:
                problem = f"{file.name}: {getattr(error, 'strerror', None) or error}"
                yield Lost(self._want.name, "corrupt", capture_ns)
                continue
            count += 1
            yield VideoFrame(self._want.name, number, self._interval, capture_ns, picture, self._want.color)
        if not count:
            raise SourceError(f"{self._folder} holds no image that can be read ({problem}).")


def _read(file: Path, reformatter: Reformatter) -> Any:
    """The first picture of `file`. Raises OSError (PyAV's errors for files) or ValueError."""
    import av

    try:
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                return reformatter.picture(frame)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(str(error)) from error
    raise ValueError("it holds no picture")


def _natural(file: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts numbers in a name by value."""
    parts = re.findall(r"\d+|\D+", file.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts], file.name
