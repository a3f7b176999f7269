"""What front-end options are refused, and with which words."""

from __future__ import annotations

import pytest

from edgemm.errors import UsageError
from edgemm.options import ImageOptions, LogMelOptions, MfccOptions, check


@pytest.mark.parametrize(
    "options",
    [
        LogMelOptions(),
        LogMelOptions(high_hz=8000.0, low_hz=0.0, edges="reflect"),
        LogMelOptions(high_hz=-8000.0 + 21.0),
        MfccOptions(),
        MfccOptions(n_coefficients=23, lifter=0.0, deltas=2),
        ImageOptions(224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ImageOptions(1, 1, color="gray", scale=1.0, dtype="uint8", pad_value=255.0, crop=(0, 0, 1, 1)),
    ],
)
def test_good_options_pass(options: LogMelOptions | MfccOptions | ImageOptions) -> None:
    check(options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": "kaiser"}, r"window is 'kaiser'; expected one of 'povey', 'hann'"),
        ({"power": 3}, r"power is 3; expected one of 1, 2"),
        ({"edges": "center"}, r"edges is 'center'; expected one of 'snip', 'reflect', 'zero'"),
        ({"hop_samples": 0}, r"hop_samples is 0; expected a whole number of at least 1"),
        ({"rate_hz": 16000.0}, r"rate_hz is 16000.0; expected a whole number"),
        ({"fft_size": 64, "window_samples": 64}, r"fft_size is 64; expected at least 128"),
        ({"fft_size": 256}, r"fft_size is 256; expected at least window_samples, 400"),
        ({"preemphasis": 1.5}, r"preemphasis is 1.5; expected a number from 0 to 1"),
        ({"scale": 0.0}, r"scale is 0.0; expected a number above 0"),
        ({"low_hz": 8000.0}, r"low_hz is 8000.0; expected 0 up to below Nyquist, 8000 Hz"),
        ({"high_hz": 8001.0}, r"high_hz is 8001.0; expected above low_hz \(20\) and at most Nyquist \(8000\)"),
        ({"high_hz": -7990.0}, r"high_hz is -7990.0"),
        ({"floor": 0.0}, r"floor is 0.0; expected a number above 0, as the logarithm of 0"),
        ({"mean": float("nan")}, r"mean is nan; expected a finite number"),
        ({"std": 0.0}, r"std is 0.0; expected a number above 0"),
    ],
)
def test_log_mel_options_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=r"^LogMelOptions\." + words):
        check(LogMelOptions(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (MfccOptions(deltas=3), r"MfccOptions.deltas is 3; expected one of 0, 1, 2"),  # type: ignore[arg-type]
        (MfccOptions(n_coefficients=0), r"MfccOptions.n_coefficients is 0; expected 1 to log_mel.n_mels, 23"),
        (MfccOptions(lifter=-1.0), r"MfccOptions.lifter is -1.0"),
        (MfccOptions(LogMelOptions(n_mels=0)), r"LogMelOptions.n_mels is 0"),
    ],
)
def test_mfcc_options_refused(options: MfccOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check(options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, r"width is 0; expected a whole number of pixels"),
        ({"height": 2.5}, r"height is 2.5; expected a whole number of pixels"),
        ({"resize": "lanczos"}, r"resize is 'lanczos'"),
        ({"crop": (0, 0, 0, 4)}, r"crop is \(0, 0, 0, 4\); expected \(x, y, width, height\)"),
        ({"crop": (1, 2, 3)}, r"crop is \(1, 2, 3\)"),
        ({"pad_value": 256}, r"pad_value is 256; expected a whole number from 0 to 255"),
        ({"pad_value": 0.5}, r"pad_value is 0.5"),
        ({"mean": (0.1, 0.2)}, r"mean is \(0.1, 0.2\); expected one finite number, or 3 for color 'rgb'"),
        ({"color": "gray", "std": (1.0, 1.0, 1.0)}, r"std is .* or 1 for color 'gray'"),
        ({"std": (0.0,)}, r"std is \(0.0,\); expected numbers above 0"),
        ({"scale": float("inf")}, r"scale is inf"),
        ({"dtype": "uint8"}, r"dtype is 'uint8'; expected \"float32\" or \"float16\".* scale 1, mean 0, std 1"),
    ],
)
def test_image_options_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=r"^ImageOptions\." + words):
        check(ImageOptions(**{"width": 8, "height": 8, **changes}))  # type: ignore[arg-type]
