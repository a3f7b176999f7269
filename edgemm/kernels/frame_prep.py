"""Camera frames to tensors: pixel formats, where pixels go, and the float64 reference of the CUDA kernel.

A frame is one or two planes of bytes, as cameras and decoders give them:

    nv12         [height, width] luma, and [ceil(height / 2), width rounded up to even] U and V in turn
    yuyv         [height, width rounded up to even, 2]: Y0 U, Y1 V
    bgr, rgb     [height, width, 3]
    gray         [height, width]

Sources: ITU-R BT.601-7 and BT.709-6 for the colour matrices; OpenCV's resize for the sampling positions (pixel centres,
INTER_AREA's weights, INTER_NEAREST's floor).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgemm.errors import UsageError
from edgemm.options import ImageOptions, check
from edgemm.types import Array

Float64 = npt.NDArray[np.float64]
Region = tuple[int, int, int, int]
"""x, y, width, height in whole pixels."""

MAX_SIDE = 16384
"""Positions are fractions of 32-bit numbers in the kernel."""

_KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


@dataclass(frozen=True)
class FrameFormat:
    """What the bytes of a frame mean. `matrix` and `full_range` matter for nv12 and yuyv only."""

    pixels: Literal["nv12", "yuyv", "bgr", "rgb", "gray"]
    width: int
    height: int
    matrix: Literal["bt601", "bt709"] = "bt601"
    """bt601 for standard definition and most webcams, bt709 for high definition."""
    full_range: bool = False
    """False: luma 16 to 235, chroma 16 to 240 (television); True: 0 to 255 (JPEG)."""

    @property
    def plane_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the planes, without padding."""
        even = self.width + self.width % 2
        return {
            "nv12": ((self.height, self.width), ((self.height + 1) // 2, even)),
            "yuyv": ((self.height, even, 2),),
            "bgr": ((self.height, self.width, 3),),
            "rgb": ((self.height, self.width, 3),),
            "gray": ((self.height, self.width),),
        }[self.pixels]


@dataclass(frozen=True)
class Int8:
    """How values become int8 model input: `round(value / scale) + zero_point`, held to -128..127."""

    scale: float
    zero_point: int = 0


@dataclass(frozen=True)
class YuvMatrix:
    """Y, U and V of 0..255 to R, G and B: `(y - luma_offset) * luma_gain`, plus these times u and v less 128."""

    luma_gain: float
    luma_offset: float
    red_v: float
    green_u: float
    green_v: float
    blue_u: float


def check_frame(frame: FrameFormat, options: ImageOptions, int8: Int8 | None = None) -> None:
    """Raise UsageError if `frame` or `options` cannot be worked with, or do not fit one another."""
    check(options)
    if frame.pixels not in ("nv12", "yuyv", "bgr", "rgb", "gray"):
        raise UsageError(f"FrameFormat.pixels is {frame.pixels!r}; expected nv12, yuyv, bgr, rgb or gray.")
    if frame.matrix not in _KR_KB:
        raise UsageError(f"FrameFormat.matrix is {frame.matrix!r}; expected bt601 or bt709.")
    for name, value in (
        ("FrameFormat.width", frame.width),
        ("FrameFormat.height", frame.height),
        ("ImageOptions.width", options.width),
        ("ImageOptions.height", options.height),
    ):
        if not 1 <= value <= MAX_SIDE:
            raise UsageError(f"{name} is {value}; expected 1 to {MAX_SIDE} pixels.")
    if options.crop is not None:
        x, y, width, height = options.crop
        if x + width > frame.width or y + height > frame.height:
            raise UsageError(
                f"ImageOptions.crop is {options.crop}, but the frame is {frame.width} x {frame.height}; "
                "expected it inside."
            )
    if int8 is not None:
        if not (np.isfinite(int8.scale) and int8.scale > 0) or not -128 <= int8.zero_point <= 127:
            raise UsageError(f"Found {int8}; expected a scale above 0 and a zero point of -128 to 127.")
        if options.dtype != "float32":
            raise UsageError(f'ImageOptions.dtype is {options.dtype!r}; expected "float32" where int8 is asked for.')


def yuv_matrix(frame: FrameFormat) -> YuvMatrix:
    """The conversion that the frame's standard and range ask for."""
    kr, kb = _KR_KB[frame.matrix]
    kg = 1.0 - kr - kb
    chroma = 1.0 if frame.full_range else 255.0 / 224.0
    return YuvMatrix(
        luma_gain=1.0 if frame.full_range else 255.0 / 219.0,
        luma_offset=0.0 if frame.full_range else 16.0,
        red_v=2.0 * (1.0 - kr) * chroma,
        green_u=-2.0 * (1.0 - kb) * kb / kg * chroma,
        green_v=-2.0 * (1.0 - kr) * kr / kg * chroma,
        blue_u=2.0 * (1.0 - kb) * chroma,
    )


def channel_factors(options: ImageOptions, int8: Int8 | None = None) -> tuple[Float64, Float64]:
    """Gain and bias of each channel: `(x * scale - mean) / std`, and the int8 scale and zero point, as `x * gain +
    bias`."""
    channels = 1 if options.color == "gray" else 3
    mean, std = (np.broadcast_to(np.array(v, np.float64), (channels,)) for v in (options.mean, options.std))
    gain, bias = options.scale / std, -mean / std
    if int8 is None:
        return gain, bias
    return gain / int8.scale, bias / int8.scale + int8.zero_point


def regions(source: Region, options: ImageOptions) -> tuple[Region, Region]:
    """What part of `source` goes where in the output.

    Lengths are rounded to whole pixels, halves up, and are at least 1; an odd pixel of a margin goes right or below.
    """
    x, y, width, height = source
    target = (0, 0, options.width, options.height)
    limited_by_width = width * options.height >= height * options.width
    if options.fit == "letterbox":
        fit_width, fit_height = options.width, options.height
        if limited_by_width:
            fit_height = min(options.height, _scaled(height, options.width, width))
        else:
            fit_width = min(options.width, _scaled(width, options.height, height))
        target = ((options.width - fit_width) // 2, (options.height - fit_height) // 2, fit_width, fit_height)
    elif options.fit == "crop":
        cut_width, cut_height = width, height
        if limited_by_width:
            cut_width = min(width, _scaled(height, options.width, options.height))
        else:
            cut_height = min(height, _scaled(width, options.height, options.width))
        x, y = x + (width - cut_width) // 2, y + (height - cut_height) // 2
        width, height = cut_width, cut_height
    return (x, y, width, height), target


def to_rgb(planes: Sequence[Array], frame: FrameFormat) -> Float64:
    """The frame as RGB in 0..255, `[height, width, 3]`: clamped, not rounded; chroma of the sample that covers a
    pixel."""
    width, height = frame.width, frame.height
    first = planes[0].astype(np.float64)
    if frame.pixels == "gray":
        return np.repeat(first[:, :, None], 3, axis=2)
    if frame.pixels in ("rgb", "bgr"):
        return first if frame.pixels == "rgb" else first[:, :, ::-1]
    if frame.pixels == "nv12":
        luma = first[:, :width]
        chroma = planes[1].astype(np.float64).reshape(-1, planes[1].shape[1] // 2, 2)
        chroma = np.repeat(np.repeat(chroma, 2, axis=0), 2, axis=1)[:height, :width]
        u, v = chroma[..., 0], chroma[..., 1]
    else:
        luma = first[:, :width, 0]
        u = np.repeat(first[:, 0::2, 1], 2, axis=1)[:, :width]
        v = np.repeat(first[:, 1::2, 1], 2, axis=1)[:, :width]
    matrix = yuv_matrix(frame)
    y, u, v = (luma - matrix.luma_offset) * matrix.luma_gain, u - 128.0, v - 128.0
    rgb = np.stack((y + matrix.red_v * v, y + matrix.green_u * u + matrix.green_v * v, y + matrix.blue_u * u), axis=2)
    return np.asarray(np.clip(rgb, 0.0, 255.0), dtype=np.float64)


def resize_matrix(size: int, out_size: int, kind: Literal["bilinear", "area", "nearest"]) -> Float64:
    """How much of each source pixel an output pixel takes along one axis, `[out_size, size]`; rows sum to 1.

    bilinear: around `(i + 0.5) * size / out_size - 0.5`, held inside. area: what the interval `[i, i + 1) * size /
    out_size` covers. nearest: `floor(i * size / out_size)`.
    """
    matrix = np.zeros((out_size, size))
    for i in range(out_size):
        if kind == "nearest":
            matrix[i, i * size // out_size] = 1.0
        elif kind == "area":
            begin, end = i * size, (i + 1) * size  # in units of 1 / out_size
            for j in range(begin // out_size, (end - 1) // out_size + 1):
                matrix[i, j] = (min(end, (j + 1) * out_size) - max(begin, j * out_size)) / size
        else:
            position = max(((2 * i + 1) * size - out_size) / (2 * out_size), 0.0)
            j = int(position)
            matrix[i, j] += 1.0 - (position - j)
            matrix[i, min(j + 1, size - 1)] += position - j
    return matrix


def frame_prep_reference(
    planes: Sequence[Array],
    frame: FrameFormat,
    options: ImageOptions,
    *,
    crops: Sequence[Region] | None = None,
    int8: Int8 | None = None,
) -> Float64:
    """The tensors of a frame in float64, `[crops, channels, height, width]` or channels last, before the conversion
    to a dtype.

    Without `crops` there is one, of `options.crop` or the whole frame. A crop is clipped to the frame; one that holds
    nothing gives an image of bars. Integer outputs are these values, rounded to the nearest and held to their range.
    """
    check_frame(frame, options, int8)
    rgb = to_rgb(planes, frame)
    gain, bias = channel_factors(options, int8)
    images = np.empty((0, len(gain), options.height, options.width))
    for crop in crops if crops is not None else [options.crop or (0, 0, frame.width, frame.height)]:
        image = np.full((options.height, options.width, len(gain)), float(options.pad_value))
        left, right = (min(max(at, 0), frame.width) for at in (crop[0], crop[0] + crop[2]))
        top, bottom = (min(max(at, 0), frame.height) for at in (crop[1], crop[1] + crop[3]))
        if right > left and bottom > top:
            (x, y, width, height), (to_x, to_y, to_width, to_height) = regions(
                (left, top, right - left, bottom - top), options
            )
            rows = resize_matrix(height, to_height, options.resize)
            columns = resize_matrix(width, to_width, options.resize)
            part = np.einsum("ij,jkc,lk->ilc", rows, rgb[y : y + height, x : x + width], columns, optimize=True)
            if options.color == "bgr":
                part = part[:, :, ::-1]
            elif options.color == "gray":
                part = part @ np.array([[0.299], [0.587], [0.114]])
            image[to_y : to_y + to_height, to_x : to_x + to_width] = part
        values = image * gain + bias
        images = np.concatenate((images, values.transpose(2, 0, 1)[None]))
    return images.transpose(0, 2, 3, 1) if options.layout == "hwc" else images


def _scaled(a: int, b: int, c: int) -> int:
    """`a * b / c`, rounded to the nearest, halves up, at least 1."""
    return max(1, (2 * a * b + c) // (2 * c))
