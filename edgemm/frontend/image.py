"""Pictures to tensors on the CPU: crop, fit, resize, colour, normalise, layout.

The picture is resized as uint8 and rounded to it, as OpenCV, and with it most training code, does. What follows is
a table of 256 entries for each channel, so the arithmetic `(x * scale - mean) / std` is done in float64 and rounded
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgemm.errors import UsageError
from edgemm.frontend.opencv import opencv
from edgemm.options import ImageOptions, check

Color = Literal["rgb", "bgr", "gray"]
Picture = npt.NDArray[np.uint8]
Tensor = npt.NDArray[Any]


@dataclass(frozen=True)
class Placement:
    """What part of a picture goes where in the output; both as x, y, width, height in whole pixels."""

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]


def place(width: int, height: int, options: ImageOptions) -> Placement:
    """Where a picture of `width` x `height` goes.

    Lengths are rounded to whole pixels, halves up, and are at least 1; an odd pixel of a margin goes to the right or
    the bottom. Raises UsageError if `options.crop` reaches beyond the picture.
    """
    x, y, wide, high = options.crop or (0, 0, width, height)
    if x + wide > width or y + high > height:
        raise UsageError(
            f"ImageOptions.crop is {options.crop}, but the picture is {width} x {height}; expected x + width and "
            "y + height within it."
        )
    out_wide, out_high = options.width, options.height
    target = (0, 0, out_wide, out_high)
    if options.fit == "crop":
        # The widest or highest centre part with the output's aspect ratio.
        part_wide = min(wide, _ratio(out_wide, high, out_high))
        part_high = min(high, _ratio(out_high, wide, out_wide))
        x, y = x + (wide - part_wide) // 2, y + (high - part_high) // 2
        wide, high = part_wide, part_high
    elif options.fit == "letterbox":
        fit_wide = min(out_wide, _ratio(wide, out_high, high))
        fit_high = min(out_high, _ratio(high, out_wide, wide))
        target = ((out_wide - fit_wide) // 2, (out_high - fit_high) // 2, fit_wide, fit_high)
    return Placement((x, y, wide, high), target)


def _ratio(a: int, b: int, c: int) -> int:
    """`a * b / c` rounded, halves up, at least 1: in whole numbers, so that it is the same everywhere."""
    return max(1, (2 * a * b + c) // (2 * c))


class Image:
    """Turns pictures of any size into tensors of one shape and dtype.

        front_end = Image(ImageOptions(width=224, height=224))
        tensor = front_end.prepare(picture, "bgr")

    One Image serves one thread: it holds work space, and allocates only when the size of the pictures changes.
    Raises UsageError for options that cannot be worked with.
    """

    def __init__(self, options: ImageOptions) -> None:
        check(options)
        self.options = options
        self._cv2 = opencv()
        self._resize = {
            "bilinear": self._cv2.INTER_LINEAR,
            "area": self._cv2.INTER_AREA,
            "nearest": self._cv2.INTER_NEAREST,
        }[options.resize]
        channels = 1 if options.color == "gray" else 3
        size = (options.height, options.width)
        self.shape: tuple[int, int, int] = (channels, *size) if options.layout == "chw" else (*size, channels)
        """Shape of the tensors, `[channels, height, width]` or `[height, width, channels]`."""
        self.dtype: np.dtype[Any] = np.dtype(options.dtype)
        """Dtype of the tensors."""
        levels = np.arange(256.0)[:, None]
        mean, std = np.array(options.mean), np.array(options.std)
        table = np.broadcast_to((levels * options.scale - mean) / std, (256, channels)).astype(self.dtype)
        # OpenCV's look-up only moves bytes; it is told that half floats are 16-bit integers.
        self._element = np.dtype(np.uint16) if self.dtype == np.float16 else self.dtype
        self._table = np.ascontiguousarray(table.view(self._element))[None]  # [1, 256, channels]
        self._channel_tables = [np.ascontiguousarray(self._table[0, :, c]) for c in range(channels)]
        # Work space, by the channels of the picture.
        self._resized = {1: np.empty(size, np.uint8), 3: np.empty((*size, 3), np.uint8)}
        self._converted = np.empty(size if channels == 1 else (*size, 3), np.uint8)
        self._planes = [np.empty(size, np.uint8) for _ in range(channels)]
        self._placed: tuple[int, int, int] | None = None
        self._placement = Placement((0, 0, 0, 0), (0, 0, 0, 0))

    def prepare(self, picture: Picture, color: Color, out: Tensor | None = None) -> Tensor:
        """Make a tensor of `picture`.

        It is uint8, `[height, width, 3]` with the channels in the order of `color`, or `[height, width]` for "gray". It
        is not changed. The tensor, of `shape` and `dtype`, is a new array of the caller's, or `out`, if
        given, which must be C-contiguous. Gray is OpenCV's (BT.601: 0.299 R + 0.587 G + 0.114 B); a gray picture fills
        three equal channels. Raises UsageError if the picture or `out` does not fit.
        """
        channels = self._check_picture(picture, color)
        if out is None:
            out = np.empty(self.shape, self.dtype)
        elif out.shape != self.shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise UsageError(
                f"out is {out.dtype}{list(out.shape)}; expected a C-contiguous {self.dtype}{list(self.shape)}."
            )
        resized = self._place(picture, channels)
        elements = out.view(self._element)
        if self.options.layout == "chw":
            self._to_planes(resized, color, elements)
        else:
            pixels = self._convert(resized, color)
            self._cv2.LUT(pixels, self._table, elements[..., 0] if pixels.ndim == 2 else elements)
        return out

    def _check_picture(self, picture: Picture, color: Color) -> int:
        channels = {"rgb": 3, "bgr": 3, "gray": 1}.get(color)
        if channels is None:
            raise UsageError(f"The picture's color is {color!r}; expected 'rgb', 'bgr' or 'gray'.")
        fits = picture.shape[2:] == (3,) if channels == 3 else picture.ndim == 2
        if not fits or picture.dtype != np.uint8 or not picture.size:
            expected = "[height, width, 3]" if channels == 3 else "[height, width]"
            raise UsageError(
                f"The {color} picture is {picture.dtype}{list(picture.shape)}; expected uint8{expected}, not empty."
            )
        return channels

    def _place(self, picture: Picture, channels: int) -> Picture:
        """Crop and resize into the work space; letterbox bars are drawn only when the picture's size changes."""
        height, width = picture.shape[:2]
        resized = self._resized[channels]
        if self._placed != (height, width, channels):
            self._placement = place(width, height, self.options)
            resized[:] = int(self.options.pad_value)
            self._placed = (height, width, channels)
        x, y, wide, high = self._placement.source
        left, top, fit_wide, fit_high = self._placement.target
        part = picture[y : y + high, x : x + wide]
        if part.strides[1:] != ((3, 1) if channels == 3 else (1,)) or part.strides[0] <= 0:
            part = np.ascontiguousarray(part)  # OpenCV takes only pixels side by side
        inside = resized[top : top + fit_high, left : left + fit_wide]
        self._cv2.resize(part, (fit_wide, fit_high), inside, interpolation=self._resize)
        return resized

    def _convert(self, pixels: Picture, color: Color) -> Picture:
        """The pixels in the colour of the options."""
        if color == self.options.color:
            return pixels
        code = getattr(self._cv2, f"COLOR_{color.upper()}2{self.options.color.upper()}")
        self._cv2.cvtColor(pixels, code, self._converted)
        return self._converted

    def _to_planes(self, pixels: Picture, color: Color, elements: Tensor) -> None:
        wanted = self.options.color
        if color == "gray":
            planes = [pixels] * len(self._planes)
        elif wanted == "gray":
            planes = [self._convert(pixels, color)]
        else:
            self._cv2.split(pixels, self._planes)
            planes = self._planes if color == wanted else self._planes[::-1]
        for plane, table, target in zip(planes, self._channel_tables, elements, strict=True):
            self._cv2.LUT(plane, table, target)
