"""Bugs planted in the log-mel and the frame preparation kernels: each must be caught, for the right reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import Planted, check_caught, check_sound

LOG_MEL = "csrc/log_mel.cu"
FRAME = "csrc/frame_prep.cu"

BEYOND = "beyond the bound"
DIFFERS = "cut.tobytes\\(\\) == at_once.tobytes\\(\\)"
RACE = "thread sanitizer stopped.*data race"
OVERFLOW = "address sanitizer stopped.*overflow"
OFF = "AssertionError: off by"


def size(fft_size: int, edges: str = "snip") -> str:
    return f"test_log_mel_cuda.py::test_every_size_and_edge[{fft_size}-{edges}]"


def cepstra(deltas: int) -> str:
    return f"test_log_mel_cuda.py::test_cepstra_normalised_and_derived[{deltas}]"


def sanitized(sanitizer: str, fft_size: int = 512) -> str:
    return f"test_log_mel_cuda.py::test_sanitizers_find_nothing[{fft_size}-{sanitizer}]"


def frame(resize: str, pixels: str) -> str:
    return f"test_frame_prep.py::test_every_format_and_resize_at_a_real_size[{resize}-{pixels}]"


def frame_sanitized(sanitizer: str) -> str:
    return f"test_frame_prep.py::test_sanitizers_find_nothing[{sanitizer}]"


BUGS = [
    # ---- log-mel: synchronisation ----------------------------------------------------------------------------------
    Planted(
        "no barrier between the passes of the FFT",
        LOG_MEL,
        "    put_back<kFft, kSpan, kRadix>(v, z, base, i, twiddle);\n  }\n  __syncwarp();\n",
        "    put_back<kFft, kSpan, kRadix>(v, z, base, i, twiddle);\n  }\n",
        sanitized("thread"),
        RACE,
    ),
    Planted(
        "the spectrum overwrites an FFT that is still read",
        LOG_MEL,
        "  __syncwarp();\n  float* spectrum",
        "  float* spectrum",
        sanitized("thread"),
        RACE,
    ),
    Planted(
        "frames are normalised before all warps have made theirs",
        LOG_MEL,
        "  __syncthreads();\n\n  if (history) {",
        "\n  if (history) {",
        sanitized("thread"),
        RACE,
    ),
    Planted(
        "derivatives are taken before all features are normalised",
        LOG_MEL,
        "      sums[features] = squares;\n    }\n    __syncthreads();\n",
        "      sums[features] = squares;\n    }\n",
        sanitized("thread"),
        RACE,
    ),
    Planted(
        "every block writes the number of frames",
        LOG_MEL,
        "p.out_frames && blockIdx.x == 0 && threadIdx.x == 0",
        "p.out_frames && threadIdx.x == 0",
        sanitized("thread"),
        RACE,
    ),
    Planted(
        "a warp without a frame skips a shuffle",
        LOG_MEL,
        "p.remove_dc ? sum_over_warp(sum)",
        "p.remove_dc && lane < 16 ? sum_over_warp(sum)",
        size(512),
        "emulator stopped",
    ),
    # ---- log-mel: memory -------------------------------------------------------------------------------------------
    Planted(
        "one sample past the window",
        LOG_MEL,
        "n < p.window_samples; n += 32",
        "n <= p.window_samples; n += 32",
        size(512),
        BEYOND,
    ),
    Planted(
        "a frame past the last row is written",
        LOG_MEL,
        "  if (frame >= p.max_frames) return;",
        "  if (frame > p.max_frames) return;",
        sanitized("address"),
        OVERFLOW,
    ),
    Planted(
        "the ring is read one sample late",
        LOG_MEL,
        "at < chunk_start ? ring[at & ring_mask]",
        "at < chunk_start ? ring[(at + 1) & ring_mask]",
        size(512),
        DIFFERS,
    ),
    Planted(
        "a chunk's first sample is not carried",
        LOG_MEL,
        "for (int i = threadIdx.x; i < count; i += blockDim.x)\n    ring",
        "for (int i = threadIdx.x + 1; i < count; i += blockDim.x)\n    ring",
        size(512),
        DIFFERS,
    ),
    # ---- log-mel: arithmetic ---------------------------------------------------------------------------------------
    Planted(
        "the roots of a radix-8 pass are conjugated",
        LOG_MEL,
        "  odd[2] = times_minus_i(odd[2]);",
        "  odd[2] = make_float2(-odd[2].y, odd[2].x);",
        size(512),
        BEYOND,
    ),
    Planted(
        "digits reversed with two radices swapped",
        LOG_MEL,
        "at += k % R::b * (kPoints / (R::a * R::b));\n  k /= R::b;",
        "at += k % R::c * (kPoints / (R::a * R::b));\n  k /= R::c;",
        size(512),
        BEYOND,
    ),
    Planted(
        "the fourth pass of the largest FFT is left out",
        LOG_MEL,
        "  if constexpr (R::d > 1) pass<kFft, R::d, R::d>(z, twiddle, lane);\n",
        "",
        size(2048),
        BEYOND,
    ),
    Planted(
        "the FFT overwrites samples that are still read",
        LOG_MEL,
        "  __syncwarp();  // the FFT takes the place of the samples\n",
        "",
        sanitized("thread"),
        RACE,
    ),
    Planted(
        "the mean stays in the sample before",
        LOG_MEL,
        "window_samples[n - 1] - mean : x;",
        "window_samples[n - 1] : x;",
        size(512),
        BEYOND,
    ),
    Planted(
        "the top bin is left out",
        LOG_MEL,
        "if (k < kPoints / 2) spectrum[kPoints - k] = bins[j].y;",
        "if (k > 0 && k < kPoints / 2) spectrum[kPoints - k] = bins[j].x;",
        size(512),
        BEYOND,
    ),
    Planted(
        "the last bin of every band is left out",
        LOG_MEL,
        "for (int k = 0; k < count; ++k) energy",
        "for (int k = 0; k < count - 1; ++k) energy",
        size(512),
        BEYOND,
    ),
    Planted(
        "int16 is divided by 32767",
        LOG_MEL,
        "(1.0f / 32768.0f)",
        "(1.0f / 32767.0f)",
        "test_log_mel_cuda.py::test_int16_is_a_fraction_of_32768",
        BEYOND,
    ),
    Planted(
        "the edge is reflected with the edge sample twice",
        LOG_MEL,
        "at = at < 0 ? -at : 2 * (total - 1) - at;",
        "at = at < 0 ? -at - 1 : 2 * (total - 1) - at + 1;",
        size(512, "reflect"),
        BEYOND,
    ),
    Planted(
        "a centred frame comes before its last sample",
        LOG_MEL,
        "1 + (total - 1 - fft_size / 2) / p.hop_samples;",
        "1 + (total + p.hop_samples - fft_size / 2) / p.hop_samples;",
        size(1024, "zero"),
        DIFFERS,
    ),
    Planted(
        "the floor hides what is not a number",
        LOG_MEL,
        "energy < p.floor ? p.floor : energy",
        "fmaxf(energy, p.floor)",
        "test_log_mel_cuda.py::test_not_a_number_stays_in_the_frames_that_hold_it",
        "assert",
    ),
    Planted(
        "a frame leaves the sliding window one too late",
        LOG_MEL,
        "leaves = frame >= p.cmvn_frames;\n      const float leaving",
        "leaves = frame > p.cmvn_frames;\n      const float leaving",
        cepstra(0),
        BEYOND,
    ),
    Planted(
        "a stream forgets the sums of its frames",
        LOG_MEL,
        "      sums[features] = squares;\n",
        "      sums[features] = sum;\n",
        cepstra(0),
        DIFFERS,
    ),
    Planted(
        "derivatives look past the last frame",
        LOG_MEL,
        "t >= frames ? frames - 1 : t",
        "t > frames ? frames - 1 : t",
        cepstra(1),
        BEYOND,
    ),
    Planted(
        "derivatives come a frame too soon",
        LOG_MEL,
        "until = frames - kDeltaReach * p.deltas;",
        "until = frames - kDeltaReach * p.deltas + 1;",
        cepstra(2),
        DIFFERS,
    ),
    # ---- frame preparation -----------------------------------------------------------------------------------------
    Planted(
        "chroma rows are taken for luma rows",
        FRAME,
        "p.chroma + (y >> 1) * p.chroma_pitch",
        "p.chroma + y * p.chroma_pitch",
        frame_sanitized("address"),
        OVERFLOW,
    ),
    Planted(
        "U and V of an odd pixel are read one byte late",
        FRAME,
        "p.chroma_pitch + (x & ~1))",
        "p.chroma_pitch + x)",
        frame("bilinear", "nv12"),
        OFF,
    ),
    Planted(
        "U and V swapped",
        FRAME,
        "x & 1 ? pair.z : pair.x, pair.y, pair.w)",
        "x & 1 ? pair.z : pair.x, pair.w, pair.y)",
        frame("bilinear", "yuyv"),
        OFF,
    ),
    Planted(
        "the neighbour of the last pixel",
        FRAME,
        "min(first + 1, size - 1)",
        "first + 1",
        frame_sanitized("address"),
        OVERFLOW,
    ),
    Planted(
        "corners instead of pixel centres",
        FRAME,
        "(2 * at + 1) * size - out_size, denominator",
        "2 * at * size, denominator",
        frame("bilinear", "rgb"),
        OFF,
    ),
    Planted(
        "an area's last pixel counts whole",
        FRAME,
        "i == last ? last_weight : 1.0f",
        "i == last ? 1.0f : 1.0f",
        frame("area", "gray"),
        OFF,
    ),
    Planted(
        "rows without their padding",
        FRAME,
        "p.plane + y * p.pitch;",
        "p.plane + y * p.width;",
        frame("nearest", "gray"),
        OFF,
    ),
    Planted(
        "letterbox bars on one side only",
        FRAME,
        "      to.y = (p.out_height - to.height) / 2;\n",
        "      to.y = 0;\n",
        frame("nearest", "bgr"),
        OFF,
    ),
    Planted(
        "crops lie one plane apart",
        FRAME,
        "image = crop * plane * channels;",
        "image = crop * plane;",
        frame_sanitized("thread"),
        RACE,
    ),
    Planted(
        "a crop beyond the frame is not clipped",
        FRAME,
        "static_cast<long long>(crop.x) + crop.z, left, p.width);",
        "static_cast<long long>(crop.x) + crop.z, left, p.width + 9);",
        frame_sanitized("address"),
        OVERFLOW,
    ),
    Planted(
        "a row past the last is written",
        FRAME,
        "x >= p.out_width || y >= p.out_height",
        "x >= p.out_width || y > p.out_height",
        frame_sanitized("address"),
        OVERFLOW,
    ),
    Planted(
        "the count of crops is not looked at",
        FRAME,
        " || (p.crop_count && crop >= __ldg(p.crop_count))",
        "",
        "test_frame_prep.py::test_a_detector_counts_its_crops_on_the_device",
        "assert",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Planted, tmp_path: Path) -> None:
    check_caught(bug, tmp_path)


@pytest.mark.slow
def test_without_a_bug_the_same_tests_pass(tmp_path: Path) -> None:
    check_sound(BUGS, tmp_path)
