"""The CPU front ends: samples to log-mel, MFCC or spectrum frames, pictures to tensors."""

from edgemm.frontend.image import Image
from edgemm.frontend.log_mel import LogMel, Mfcc, Spectrum

__all__ = ["Image", "LogMel", "Mfcc", "Spectrum"]
