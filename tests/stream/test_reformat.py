from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from edgemm.stream.sources.reformat import PIXEL_FORMATS, Reformatter


def decoded(width: int, height: int) -> av.VideoFrame:
    """A picture of noise as decoders give it."""
    frame = av.VideoFrame(width, height, "yuv420p")
    random = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(random.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    return frame


@pytest.mark.parametrize("color", PIXEL_FORMATS)
@pytest.mark.parametrize("size", [(640, 480), (638, 33), (2, 2)])
def test_pictures_are_those_of_pyav_and_stay(color: str, size: tuple[int, int]) -> None:
    reformatter = Reformatter(PIXEL_FORMATS[color])  # type: ignore[index]
    frame = decoded(*size)
    picture = reformatter.picture(frame)
    assert picture.dtype == np.uint8
    assert picture.shape == ((size[1], size[0]) if color == "gray" else (size[1], size[0], 3))
    np.testing.assert_array_equal(picture, frame.to_ndarray(format=PIXEL_FORMATS[color]))  # type: ignore[index]
    kept = picture.copy()
    for _ in range(5):
        reformatter.picture(av.VideoFrame(*size, "yuv420p"))
    np.testing.assert_array_equal(picture, kept)


def test_no_thread_but_the_one_that_asks_takes_part() -> None:
    """PyAV's own default from version 17 on starts one for each processor."""

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").is_dir():
        pytest.skip("takes Linux, which tells the threads of a process")
    frame = decoded(640, 480)
    before = threads()
    reformatter = Reformatter("rgb24")
    reformatter.picture(frame)
    assert threads() <= before
