"""The front end that the recipe describes, by other hands: kaldi-native-fbank for sound, OpenCV for pictures.

edgemm's own front ends must agree with these numbers (log-mel within 2e-3); training on an independent
implementation keeps a mistake in either from hiding in both.
"""

from __future__ import annotations

import cv2
import kaldi_native_fbank as knf
import numpy as np

RATE_HZ = 16000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
N_MELS = 40
AUDIO_FRAMES = 100
SPAN_SAMPLES = (AUDIO_FRAMES - 1) * HOP_SAMPLES + WINDOW_SAMPLES  # 16240 samples, 1.015 s
VIDEO_FRAMES = 8
VIDEO_SPACING_S = 0.125
PICTURE = 32


def _options() -> knf.FbankOptions:
    options = knf.FbankOptions()
    frame = options.frame_opts
    frame.samp_freq = RATE_HZ
    frame.frame_length_ms = 25.0
    frame.frame_shift_ms = 10.0
    frame.dither = 0.0
    frame.preemph_coeff = 0.97
    frame.remove_dc_offset = True
    frame.window_type = "povey"
    frame.round_to_power_of_two = True  # 512-point FFT
    frame.snip_edges = True
    options.mel_opts.num_bins = N_MELS
    options.mel_opts.low_freq = 20.0
    options.mel_opts.high_freq = 0.0  # the Nyquist frequency
    options.use_energy = False
    options.use_log_fbank = True
    options.use_power = True
    return options


_OPTIONS = _options()


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Log-mel frames of mono samples in [-1, 1], before normalisation: float32 [N_MELS, frames]."""
    fbank = knf.OnlineFbank(_OPTIONS)
    fbank.accept_waveform(RATE_HZ, np.ascontiguousarray(samples, dtype=np.float32))
    fbank.input_finished()
    return np.stack([fbank.get_frame(k) for k in range(fbank.num_frames_ready)], axis=1)


def picture(gray: np.ndarray) -> np.ndarray:
    """A whole gray picture, uint8 [height, width], stretched to uint8 [32, 32] by area averaging."""
    return cv2.resize(gray, (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
