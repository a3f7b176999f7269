"""Pictures to tensors, against slow arithmetic written out in numpy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.errors import UsageError
from edgemm.frontend import Image
from edgemm.frontend.image import Placement, place
from edgemm.options import ImageOptions

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (48, 64, 3), np.uint8)
GRAY = RNG.integers(0, 256, (48, 64), np.uint8)


def expected(picture: np.ndarray, color: str, options: ImageOptions) -> np.ndarray:
    """What a picture that already has the right size becomes."""
    pixels = picture.astype(np.float64)
    if color == "gray":
        rgb = np.repeat(pixels[..., None], 3, axis=2)
    else:
        rgb = pixels[..., ::-1] if color == "bgr" else pixels
    if options.color == "gray":
        wanted = pixels[..., None] if color == "gray" else np.round(rgb @ [0.299, 0.587, 0.114])[..., None]
    else:
        wanted = rgb[..., ::-1] if options.color == "bgr" else rgb
    values = (wanted * options.scale - np.array(options.mean)) / np.array(options.std)
    tensor = values.transpose(2, 0, 1) if options.layout == "chw" else values
    return tensor.astype(options.dtype)


@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("wanted", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_color_normalisation_layout_and_dtype(color: str, wanted: str, layout: str, dtype: str) -> None:
    picture = GRAY if color == "gray" else PICTURE
    plain = {"scale": 1.0} if dtype == "uint8" else {}
    several = {} if dtype == "uint8" or wanted == "gray" else {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    options = ImageOptions(64, 48, color=wanted, layout=layout, dtype=dtype, **plain, **several)  # type: ignore[arg-type]
    front_end = Image(options)
    tensor = front_end.prepare(picture, color)  # type: ignore[arg-type]
    want = expected(picture, color, options)
    assert tensor.shape == want.shape == front_end.shape
    assert tensor.dtype == want.dtype == front_end.dtype
    if wanted == "gray" and color != "gray":
        # OpenCV's integer weights may round a half the other way: one level of 255.
        levels = (tensor.astype(np.float64) - want) / options.scale
        assert np.abs(levels).max() < 1.2
    else:
        np.testing.assert_array_equal(tensor, want)


@pytest.mark.parametrize(
    ("resize", "flag"),
    [("bilinear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA), ("nearest", cv2.INTER_NEAREST)],
)
def test_resize_is_opencvs(resize: str, flag: int) -> None:
    options = ImageOptions(20, 10, resize=resize, scale=1.0, layout="hwc", dtype="uint8")  # type: ignore[arg-type]
    want = cv2.resize(PICTURE, (20, 10), interpolation=flag)
    np.testing.assert_array_equal(Image(options).prepare(PICTURE, "rgb"), want)


def test_area_is_the_mean() -> None:
    options = ImageOptions(16, 12, resize="area", color="gray", scale=1.0)
    means = GRAY.reshape(12, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(Image(options).prepare(GRAY, "gray")[0], means, atol=0.51)


def test_bilinear_has_its_pixel_centres_at_halves() -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (4, 1))  # [4, 32]
    options = ImageOptions(16, 4, color="gray", scale=1.0)
    # Halving takes the middle between two pixels.
    want = np.tile((np.arange(16) * 16 + 4).astype(np.float32), (4, 1))
    np.testing.assert_array_equal(Image(options).prepare(ramp, "gray")[0], want)


def test_crop_comes_first() -> None:
    options = ImageOptions(10, 6, crop=(5, 7, 10, 6))
    want = Image(ImageOptions(10, 6)).prepare(PICTURE[7:13, 5:15], "rgb")
    np.testing.assert_array_equal(Image(options).prepare(PICTURE, "rgb"), want)


def test_letterbox_centres_and_pads() -> None:
    options = ImageOptions(64, 64, fit="letterbox", pad_value=114, layout="hwc", scale=1.0)
    tensor = Image(options).prepare(PICTURE, "rgb")
    np.testing.assert_array_equal(tensor[8:56], PICTURE)
    np.testing.assert_array_equal(tensor[:8], 114.0)
    np.testing.assert_array_equal(tensor[56:], 114.0)


def test_letterbox_bars_follow_the_size_of_the_pictures() -> None:
    front_end = Image(ImageOptions(64, 64, fit="letterbox", pad_value=9, scale=1.0))
    wide, tall = np.full((16, 64), 200, np.uint8), np.full((64, 16), 100, np.uint8)
    for picture, color, value in ((wide, "gray", 200), (tall, "gray", 100), (wide, "gray", 200)):
        tensor = front_end.prepare(picture, color)  # type: ignore[arg-type]
        assert (tensor == value).sum() == 3 * 16 * 64
        assert (tensor == 9).sum() == tensor.size - 3 * 16 * 64
    np.testing.assert_array_equal(
        front_end.prepare(np.stack([tall] * 3, axis=2), "bgr"), front_end.prepare(tall, "gray")
    )


def test_crop_to_fit_keeps_the_centre() -> None:
    options = ImageOptions(48, 48, fit="crop", layout="hwc", scale=1.0, dtype="uint8")
    np.testing.assert_array_equal(Image(options).prepare(PICTURE, "rgb"), PICTURE[:, 8:56])


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    out_width=st.integers(1, 1000),
    out_height=st.integers(1, 1000),
    fit=st.sampled_from(["stretch", "letterbox", "crop"]),
    data=st.data(),
)
def test_placement_stays_inside_and_keeps_the_aspect_ratio(
    width: int, height: int, out_width: int, out_height: int, fit: str, data: st.DataObject
) -> None:
    crop = None
    if data.draw(st.booleans()):
        x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        crop = (x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    options = ImageOptions(out_width, out_height, fit=fit, crop=crop)  # type: ignore[arg-type]
    placement = place(width, height, options)
    x, y, wide, high = placement.source
    left, top, fit_wide, fit_high = placement.target
    allowed = crop or (0, 0, width, height)
    assert allowed[0] <= x
    assert allowed[1] <= y
    assert x + wide <= allowed[0] + allowed[2]
    assert y + high <= allowed[1] + allowed[3]
    assert wide >= 1
    assert high >= 1
    assert 0 <= left <= left + fit_wide <= out_width
    assert 0 <= top <= top + fit_high <= out_height
    if fit == "stretch":
        assert placement == Placement(allowed, (0, 0, out_width, out_height))
    if fit == "letterbox":
        assert fit_wide == out_width or fit_high == out_height
        # Either side is within half a pixel of the exact ratio, unless that is below one pixel.
        assert abs(fit_wide - min(out_width, wide * out_height / high)) <= 0.5 or fit_wide == 1
        assert abs(fit_high - min(out_height, high * out_width / wide)) <= 0.5 or fit_high == 1
    if fit == "crop":
        assert wide == allowed[2] or high == allowed[3]
        # The same margin on both sides, but for an odd pixel.
        assert 0 <= (allowed[2] - wide) - 2 * (x - allowed[0]) <= 1
        assert 0 <= (allowed[3] - high) - 2 * (y - allowed[1]) <= 1


def test_out_is_filled_and_returned() -> None:
    front_end = Image(ImageOptions(32, 24))
    batch = np.full((2, 3, 24, 32), np.nan, np.float32)
    tensor = front_end.prepare(PICTURE, "bgr", out=batch[1])
    assert np.shares_memory(tensor, batch)
    np.testing.assert_array_equal(batch[1], front_end.prepare(PICTURE, "bgr"))
    assert np.isnan(batch[0]).all()


@settings(max_examples=30)
@given(
    layout=st.sampled_from(["chw", "hwc"]),
    color=st.sampled_from(["rgb", "bgr", "gray"]),
    wanted=st.sampled_from(["rgb", "bgr", "gray"]),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_pictures_with_any_strides(layout: str, color: str, wanted: str, dtype: str) -> None:
    options = ImageOptions(15, 11, color=wanted, layout=layout, dtype=dtype)  # type: ignore[arg-type]
    front_end = Image(options)
    source = GRAY if color == "gray" else PICTURE
    for view in (source[::-1], source[:, ::2], source[3:30, 5:41], np.asfortranarray(source), source.swapaxes(0, 1)):
        view = view.view()
        view.flags.writeable = False
        before = view.copy()
        tensor = front_end.prepare(view, color)  # type: ignore[arg-type]
        np.testing.assert_array_equal(tensor, front_end.prepare(np.ascontiguousarray(view), color))  # type: ignore[arg-type]
        np.testing.assert_array_equal(view, before)


def test_tensors_are_the_callers() -> None:
    front_end = Image(ImageOptions(8, 8, layout="hwc", scale=1.0, dtype="uint8"))
    first = front_end.prepare(PICTURE, "rgb")
    kept = first.copy()
    front_end.prepare(255 - PICTURE, "rgb")
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("picture", "color", "words"),
    [
        (PICTURE, "nv12", r"color is 'nv12'; expected 'rgb', 'bgr' or 'gray'"),
        (GRAY, "rgb", r"The rgb picture is uint8\[48, 64\]; expected uint8\[height, width, 3\]"),
        (PICTURE, "gray", r"The gray picture is uint8\[48, 64, 3\]; expected uint8\[height, width\]"),
        (PICTURE.astype(np.float32), "rgb", r"picture is float32\[48, 64, 3\]"),
        (PICTURE[:0], "rgb", r"picture is uint8\[0, 64, 3\]; expected .* not empty"),
        (np.zeros((4, 4, 4), np.uint8), "bgr", r"uint8\[4, 4, 4\]"),
    ],
)
def test_wrong_pictures_are_refused(picture: np.ndarray, color: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Image(ImageOptions(8, 8)).prepare(picture, color)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "out",
    [
        np.empty((3, 8, 9), np.float32),
        np.empty((3, 8, 8), np.float64),
        np.empty((8, 8, 3), np.float32).transpose(2, 0, 1),
    ],
)
def test_wrong_out_is_refused(out: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"out is .*; expected a C-contiguous float32\[3, 8, 8\]|\(3, 8, 8\)"):
        Image(ImageOptions(8, 8)).prepare(PICTURE, "rgb", out=out)


def test_a_crop_beyond_the_picture_is_refused() -> None:
    front_end = Image(ImageOptions(8, 8, crop=(60, 0, 5, 5)))
    with pytest.raises(UsageError, match=r"crop is \(60, 0, 5, 5\), but the picture is 64 x 48"):
        front_end.prepare(PICTURE, "rgb")
