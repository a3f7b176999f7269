"""The CUDA frame preparation kernel, run by the emulator, against float64, OpenCV and libswscale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from require import require

from edgemm.errors import KernelError, UsageError
from edgemm.frontend.image import Image, place
from edgemm.kernels.emulate import Sanitizer
from edgemm.kernels.frame_prep import (
    FrameFormat,
    Int8,
    Region,
    channel_factors,
    frame_prep_reference,
    regions,
    resize_matrix,
    to_rgb,
)
from edgemm.kernels.frame_prep_cuda import FramePrepKernel
from edgemm.kernels.launch import EmulatorRunner
from edgemm.options import ImageOptions
from edgemm.types import Array

RUNNER = EmulatorRunner()
UNIT = 2.0**-24
PLAIN = ImageOptions(8, 8, scale=1.0)


def picture(frame: FrameFormat, seed: int = 0, padding: int = 0) -> list[Array]:
    """Planes of random bytes, each row followed by `padding` more that no kernel may take for pixels."""
    random = np.random.default_rng(seed)
    planes = []
    for shape in frame.plane_shapes:
        row = int(np.prod(shape[1:]))
        pitched = np.full((shape[0], row + padding), 255, np.uint8)
        pitched[:, :row] = random.integers(0, 256, (shape[0], row), dtype=np.uint8)
        planes.append(view_of(pitched, shape))
    return planes


def view_of(pitched: Array, shape: tuple[int, ...]) -> Array:
    inner = (1,) if len(shape) == 2 else (shape[2], 1)
    return np.ndarray(shape, np.uint8, buffer=pitched, strides=(pitched.strides[0], *inner))


def prepare(
    planes: Sequence[Array],
    frame: FrameFormat,
    options: ImageOptions,
    *,
    crops: Sequence[Region] | None = None,
    crop_count: int | None = None,
    int8: Int8 | None = None,
    runner: EmulatorRunner = RUNNER,
) -> Array:
    kernel = FramePrepKernel(options, frame, runner, int8=int8)
    boxes = None if crops is None else np.array(crops, np.int32).reshape(-1, 4)
    out = np.full((1 if boxes is None else len(boxes), *kernel.shape), 77, kernel.dtype)
    count = None if crop_count is None else np.array([crop_count], np.int32)
    kernel(planes, out, crops=boxes, crop_count=count)
    return out


def assert_agrees(
    found: Array, reference: Array, options: ImageOptions, frame: FrameFormat, int8: Int8 | None = None
) -> None:
    """Within the roundings of float32.

    With u = 2^-24: a pixel as RGB is at most 255 and takes 8 roundings (its terms are below 1024 before the clamp); a
    weight takes 3, and a sum one for each of its taps, of which an output pixel has at most (ceil(size / out_size) +
    1)^2. The gain multiplies that; the last fmaf adds one of its own.
    """
    side = max(-(-frame.width // options.width), -(-frame.height // options.height)) + 1
    taps = side * side if options.resize == "area" else 4
    gain, bias = channel_factors(options, int8)
    error = UNIT * (8 * 1024 + 255 * (2 * taps + 12)) * np.max(np.abs(gain))
    error = error + 4 * UNIT * (np.abs(reference) + np.max(np.abs(bias)))
    low, high = reference - error, reference + error
    if found.dtype in (np.uint8, np.int8):
        limits = np.iinfo(found.dtype)
        low, high = (np.clip(np.rint(x), limits.min, limits.max) for x in (low, high))
    elif found.dtype == np.float16:
        low, high = low.astype(np.float16), high.astype(np.float16)
    assert found.shape == reference.shape
    assert np.all((low <= found) & (found <= high)), f"off by {np.max(np.abs(found.astype(float) - reference))}"


@st.composite
def frames(draw: st.DrawFn) -> FrameFormat:
    return FrameFormat(
        pixels=draw(st.sampled_from(("nv12", "yuyv", "bgr", "rgb", "gray"))),
        width=draw(st.integers(1, 50)),
        height=draw(st.integers(1, 40)),
        matrix=draw(st.sampled_from(("bt601", "bt709"))),
        full_range=draw(st.booleans()),
    )


@st.composite
def image_options(draw: st.DrawFn) -> ImageOptions:
    color = draw(st.sampled_from(("rgb", "bgr", "gray")))
    dtype = draw(st.sampled_from(("float32", "float16", "uint8")))
    normalised = dtype != "uint8" and draw(st.booleans())
    per_channel = normalised and color != "gray"
    return ImageOptions(
        width=draw(st.integers(1, 45)),
        height=draw(st.integers(1, 30)),
        resize=draw(st.sampled_from(("bilinear", "area", "nearest"))),
        fit=draw(st.sampled_from(("stretch", "letterbox", "crop"))),
        pad_value=draw(st.sampled_from((0.0, 114.0))),
        color=color,
        scale=1 / 255 if normalised else 1.0,
        mean=(0.485, 0.456, 0.406) if per_channel else (0.0,),
        std=(0.229, 0.224, 0.225) if per_channel else (1.0,),
        layout=draw(st.sampled_from(("chw", "hwc"))),
        dtype=dtype,
    )


BOXES = st.tuples(st.integers(-9, 50), st.integers(-9, 40), st.integers(-3, 60), st.integers(-3, 50))


@settings(max_examples=200)
@given(st.data())
def test_the_kernel_agrees_with_float64(data: st.DataObject) -> None:
    frame, options = data.draw(frames()), data.draw(image_options())
    crops = data.draw(st.one_of(st.none(), st.lists(BOXES, max_size=4)))
    int8 = Int8(0.02, -3) if options.dtype == "float32" and data.draw(st.booleans()) else None
    # a row of nv12's chroma and of yuyv is even, and starts at a multiple of 2 and of 4
    planes = picture(frame, data.draw(st.integers(0, 99)), padding=data.draw(st.sampled_from((0, 4, 60))))
    found = prepare(planes, frame, options, crops=crops, int8=int8)
    reference = frame_prep_reference(planes, frame, options, crops=crops, int8=int8)
    assert_agrees(found, reference, options, frame, int8)


@pytest.mark.parametrize("pixels", ["nv12", "yuyv", "bgr", "rgb", "gray"])
@pytest.mark.parametrize("resize", ["bilinear", "area", "nearest"])
def test_every_format_and_resize_at_a_real_size(pixels: Any, resize: Any) -> None:
    frame = FrameFormat(pixels, 161, 91)
    options = ImageOptions(64, 48, resize=resize, fit="letterbox", pad_value=114, std=(0.5,), mean=(0.5,))
    planes = picture(frame, padding=8)
    found = prepare(planes, frame, options)
    assert_agrees(found, frame_prep_reference(planes, frame, options), options, frame)


def test_faces_from_one_frame_in_one_launch() -> None:
    frame, options = FrameFormat("nv12", 160, 120), ImageOptions(24, 24, fit="crop")
    planes = picture(frame)
    faces = [(3, 5, 40, 50), (100, 60, 59, 59), (-10, -10, 30, 30), (150, 110, 100, 100), (200, 10, 5, 5)]
    found = prepare(planes, frame, options, crops=faces)
    assert_agrees(found, frame_prep_reference(planes, frame, options, crops=faces), options, frame)
    assert not found[4].any()  # nothing of it is in the frame


def test_a_detector_counts_its_crops_on_the_device() -> None:
    frame, options = FrameFormat("rgb", 40, 30), ImageOptions(8, 8, pad_value=9, scale=1.0)
    planes, faces = picture(frame), [(0, 0, 20, 20), (5, 5, 20, 20), (9, 9, 9, 9)]
    found = prepare(planes, frame, options, crops=faces, crop_count=2)
    np.testing.assert_array_equal(found[:2], prepare(planes, frame, options, crops=faces[:2]))
    assert (found[2] == 9).all()


def test_the_crop_of_the_options_comes_first() -> None:
    frame, options = FrameFormat("bgr", 40, 30), ImageOptions(8, 8, crop=(10, 5, 20, 20))
    planes = picture(frame)
    found = prepare(planes, frame, options)
    assert_agrees(found, frame_prep_reference(planes, frame, options), options, frame)
    np.testing.assert_array_equal(found, prepare(planes, frame, options, crops=[(10, 5, 20, 20)]))


def test_no_crops_make_no_launch() -> None:
    frame = FrameFormat("gray", 8, 8)
    assert prepare(picture(frame), frame, PLAIN, crops=[]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("order", ["forward", "reversed", "shuffled"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_order_of_threads_and_blocks_changes_a_bit(order: Any, seed: int) -> None:
    frame, options = FrameFormat("nv12", 90, 70), ImageOptions(50, 40, resize="area", fit="letterbox")
    planes, boxes = picture(frame), [(0, 0, 90, 70), (7, 9, 31, 50)]
    runner = EmulatorRunner(seed=seed, block_order=order)
    found = prepare(planes, frame, options, crops=boxes, runner=runner)
    assert found.tobytes() == prepare(planes, frame, options, crops=boxes).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "undefined", "thread"])
def test_sanitizers_find_nothing(sanitizer: Sanitizer) -> None:
    runner = EmulatorRunner(sanitizer=sanitizer, seed=1)
    for pixels in ("nv12", "yuyv", "bgr", "gray"):
        for resize in ("bilinear", "area", "nearest"):
            frame = FrameFormat(pixels, 31, 17)  # type: ignore[arg-type]
            options = ImageOptions(13, 9, resize=resize, fit="letterbox", dtype="float16")  # type: ignore[arg-type]
            boxes = [(0, 0, 31, 17), (-3, 8, 40, 40), (28, 14, 3, 3), (2**31 - 1, 0, 2**31 - 1, 4)]
            planes = picture(frame)
            if pixels == "yuyv":
                planes = [np.ascontiguousarray(planes[0])]
            found = prepare(planes, frame, options, crops=boxes, runner=runner)
            assert found.tobytes() == prepare(planes, frame, options, crops=boxes).tobytes()


# ---- peers ----


@pytest.mark.parametrize("out", [(64, 48), (200, 150), (23, 91), (160, 120), (80, 60)])
@pytest.mark.parametrize(
    ("resize", "peer"), [("bilinear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA), ("nearest", cv2.INTER_NEAREST)]
)
def test_opencv_resizes_alike(resize: Any, peer: int, out: tuple[int, int]) -> None:
    frame = FrameFormat("rgb", 160, 120)
    planes = picture(frame)
    found = prepare(planes, frame, ImageOptions(*out, resize=resize, scale=1.0, layout="hwc"))[0]
    theirs = cv2.resize(planes[0].astype(np.float32), out, interpolation=peer)
    # OpenCV's float path; its positions are float32: 160 * 2^-24 of a pixel, times a step of 255
    np.testing.assert_allclose(found, theirs, atol=255 * 160 * 4 * UNIT)


@pytest.mark.parametrize(
    ("pixels", "code"), [("nv12", cv2.COLOR_YUV2RGB_NV12), ("yuyv", cv2.COLOR_YUV2RGB_YUYV), ("bgr", cv2.COLOR_BGR2RGB)]
)
def test_opencv_converts_alike(pixels: Any, code: int) -> None:
    frame = FrameFormat(pixels, 32, 24)
    planes = [np.clip(plane, 16, 235) for plane in picture(frame)]  # below 16 OpenCV clamps luma before the matrix
    theirs = cv2.cvtColor(np.concatenate(planes) if pixels == "nv12" else planes[0], code)
    found = prepare(planes, frame, ImageOptions(32, 24, scale=1.0, layout="hwc"))[0]
    # OpenCV rounds to whole levels (0.5) and its coefficients have three decimals (0.5 over 255 levels)
    assert np.max(np.abs(found - theirs)) <= 1.0


def test_opencv_converts_full_range_alike() -> None:
    frame = FrameFormat("yuyv", 32, 24, full_range=True)
    planes = picture(frame)
    u, v = (np.repeat(planes[0][:, start::2, 1], 2, axis=1) for start in (0, 1))
    theirs = cv2.cvtColor(np.stack((planes[0][..., 0], v, u), axis=2), cv2.COLOR_YCrCb2RGB)
    found = prepare(planes, frame, ImageOptions(32, 24, scale=1.0, layout="hwc"))[0]
    assert np.max(np.abs(found - theirs)) <= 1.0


def test_opencv_makes_gray_alike() -> None:
    frame = FrameFormat("bgr", 32, 24)
    planes = picture(frame)
    found = prepare(planes, frame, ImageOptions(32, 24, scale=1.0, color="gray"))[0, 0]
    assert np.max(np.abs(found - cv2.cvtColor(planes[0], cv2.COLOR_BGR2GRAY))) <= 0.51


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_libswscale_converts_alike(matrix: Any, full_range: bool) -> None:
    av = require("av", "test", "pip install av")
    frame = FrameFormat("nv12", 32, 16, matrix=matrix, full_range=full_range)
    for y, u, v in ((81, 90, 240), (145, 54, 34), (41, 240, 110), (180, 128, 128), (235, 120, 140)):
        planes = [np.full((16, 32), y, np.uint8), np.tile(np.array([u, v], np.uint8), (8, 16))]
        theirs = av.VideoFrame.from_ndarray(np.concatenate(planes), format="nv12").reformat(
            format="rgb24",
            src_colorspace="ITU709" if matrix == "bt709" else "ITU601",
            src_color_range="JPEG" if full_range else "MPEG",
            dst_color_range="JPEG",
        )
        found = prepare(planes, frame, ImageOptions(32, 16, scale=1.0, layout="hwc"))[0]
        # its quick path works in whole levels: up to 2.5 off here; the wrong matrix or range is off by 17 and more
        assert np.max(np.abs(found - theirs.to_ndarray())) <= 3.0


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_the_cpu_front_end_agrees(fit: Any, color: Any) -> None:
    frame = FrameFormat("bgr", 101, 67)
    options = ImageOptions(40, 40, fit=fit, color=color, pad_value=114, scale=1.0)
    planes = picture(frame)
    found = prepare(planes, frame, options)[0]
    # It rounds to whole levels after the resize, whose weights have 11 bits, and once more after the colour.
    assert np.max(np.abs(found - Image(options).prepare(planes[0], "bgr"))) <= 1.25


@settings(max_examples=300)
@given(st.tuples(*[st.integers(1, 4000)] * 4), st.sampled_from(("stretch", "letterbox", "crop")))
def test_regions_are_those_of_the_cpu_front_end(sizes: tuple[int, int, int, int], fit: Any) -> None:
    width, height, out_width, out_height = sizes
    options = ImageOptions(out_width, out_height, fit=fit)
    placed = place(width, height, options)
    assert regions((0, 0, width, height), options) == (placed.source, placed.target)


@settings(max_examples=100)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(("bilinear", "area", "nearest")))
def test_resize_weights_sum_to_one(size: int, out_size: int, kind: Any) -> None:
    np.testing.assert_allclose(resize_matrix(size, out_size, kind).sum(axis=1), 1.0)


def test_white_and_black_are_the_ends_of_the_range() -> None:
    for full_range, black, white in ((False, 16, 235), (True, 0, 255)):
        frame = FrameFormat("nv12", 2, 1, full_range=full_range)
        rgb = to_rgb([np.array([[black, white]], np.uint8), np.full((1, 2), 128, np.uint8)], frame)
        np.testing.assert_allclose(rgb, [[[0, 0, 0], [255, 255, 255]]], atol=1e-12)


# ---- bad input ----

GOOD = FrameFormat("nv12", 8, 8)


def planes_of(frame: FrameFormat) -> list[Array]:
    return [np.zeros(shape, np.uint8) for shape in frame.plane_shapes]


def odd_address(shape: tuple[int, ...]) -> Array:
    return np.zeros(int(np.prod(shape)) + 1, np.uint8)[1:].reshape(shape)


@pytest.mark.parametrize(
    ("frame", "planes", "arguments", "words"),
    [
        (GOOD, planes_of(GOOD)[:1], {}, "Found 1 planes; a frame of nv12 has 2"),
        (GOOD, planes_of(replace(GOOD, width=7)), {}, r"the luma plane has shape \[8, 7\]; expected \[8, 8\]"),
        (GOOD, [p.astype(np.int16) for p in planes_of(GOOD)], {}, "the luma plane is int16; expected uint8"),
        (GOOD, [np.zeros((8, 8), np.uint8), odd_address((4, 8))], {}, "chroma plane lies at 0x.*multiple of 2"),
        (
            GOOD,
            [np.zeros((8, 8), np.uint8), np.zeros((4, 9), np.uint8)[:, :8]],
            {},
            "the chroma plane has rows of 9 bytes; expected a multiple of 2. Pad the rows",
        ),
        (GOOD, [np.zeros((8, 16), np.uint8)[:, ::2], planes_of(GOOD)[1]], {}, "luma plane has strides .* side by side"),
        (GOOD, [np.zeros((8, 8), np.uint8)[::-1], planes_of(GOOD)[1]], {}, "luma plane has strides"),
        (GOOD, planes_of(GOOD), {"out": np.zeros((1, 8, 8, 3), np.float32)}, r"out has shape \[1, 8, 8, 3\]"),
        (GOOD, planes_of(GOOD), {"out": np.zeros((1, 3, 8, 8), np.uint8)}, "out is uint8; expected float32"),
        (GOOD, planes_of(GOOD), {"crops": np.zeros((1, 4), np.int64)}, "crops is int64; expected int32"),
        (GOOD, planes_of(GOOD), {"crops": np.zeros((1, 5), np.int32)}, r"crops has shape \[1, 5\]; expected \[any"),
        (GOOD, planes_of(GOOD), {"crop_count": np.zeros(2, np.int32)}, r"crop_count has shape \[2\]; expected \[1\]"),
        (
            GOOD,
            planes_of(GOOD),
            {"crops": np.broadcast_to(np.zeros((1, 4), np.int32), (70000, 4)).copy()},
            "Found 70000 crops; expected at most 65535",
        ),
    ],
)
def test_arguments_that_do_not_fit(
    frame: FrameFormat, planes: list[Array], arguments: dict[str, Any], words: str
) -> None:
    kernel = FramePrepKernel(PLAIN, frame, RUNNER)
    out = arguments.pop("out", np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(KernelError, match=words):
        kernel(planes, out, **arguments)


@pytest.mark.parametrize(
    ("frame", "options", "int8", "words"),
    [
        (replace(GOOD, pixels="i420"), PLAIN, None, "pixels is 'i420'; expected nv12, yuyv, bgr, rgb or gray"),
        (replace(GOOD, matrix="bt2020"), PLAIN, None, "matrix is 'bt2020'; expected bt601 or bt709"),
        (replace(GOOD, width=0), PLAIN, None, "FrameFormat.width is 0; expected 1 to 16384"),
        (GOOD, replace(PLAIN, height=20000), None, "ImageOptions.height is 20000; expected 1 to 16384"),
        (GOOD, replace(PLAIN, crop=(4, 4, 5, 4)), None, r"crop is \(4, 4, 5, 4\), but the frame is 8 x 8"),
        (GOOD, PLAIN, Int8(0.0), "expected a scale above 0 and a zero point of -128 to 127"),
        (GOOD, PLAIN, Int8(1.0, 200), "expected a scale above 0 and a zero point of -128 to 127"),
        (GOOD, replace(PLAIN, dtype="float16"), Int8(1.0), "dtype is 'float16'; expected \"float32\""),
    ],
)
def test_options_that_cannot_be(frame: FrameFormat, options: ImageOptions, int8: Int8 | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FramePrepKernel(options, frame, RUNNER, int8=int8)
