"""The CPU front ends: samples to log-mel or MFCC frames, pictures to tensors."""

from edgemm.frontend.image import Image
from edgemm.frontend.log_mel import LogMel, Mfcc

__all__ = ["Image", "LogMel", "Mfcc"]
