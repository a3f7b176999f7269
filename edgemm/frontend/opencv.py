"""The one place where the front ends import OpenCV, so that importing edgemm does not."""

from __future__ import annotations

from types import ModuleType


def opencv() -> ModuleType:
    """Import and return `cv2`."""
    import cv2

    return cv2
