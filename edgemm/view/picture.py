"""Pictures as JPEG, small enough to be sent many times a second."""

from __future__ import annotations

from edgemm.frontend.opencv import opencv
from edgemm.stream.frames import VideoFrame

MAX_WIDTH = 960
"""Wider pictures are scaled down: what a page shows, a quarter of the work for 1080p."""

QUALITY = 80


def jpeg(frame: VideoFrame) -> bytes:
    """The picture of `frame` as JPEG, at most MAX_WIDTH wide."""
    cv2 = opencv()
    picture = frame.picture
    height, width = picture.shape[:2]
    if width > MAX_WIDTH:
        size = (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if frame.color == "rgb":
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return bytes(data)
