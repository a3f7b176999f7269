"""Writes the flash-and-beep clip as a file that any phone or computer plays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from edgemm.errors import SinkError
from edgemm.stream import flash_beep

RATE_HZ = 48000
WIDTH, HEIGHT = 640, 360


def write_flash_beep(path: str | Path, seconds: float, offset_ms: float = 0.0) -> None:
    """Write the clip to `path`, whose ending names the container: mp4 and mov with AAC, mkv with PCM.

    Raises SinkError.
    """
    import av
    from av import AudioFrame, VideoFrame

    name = str(path)
    lossless = Path(path).suffix == ".mkv"
    samples = flash_beep.sound(seconds, RATE_HZ, offset_ms)
    try:
        with av.open(name, "w") as container:
            video = container.add_stream("libx264", rate=flash_beep.FPS, options={"crf": "20", "preset": "veryfast"})
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            audio = container.add_stream("pcm_s16le" if lossless else "aac", rate=RATE_HZ, layout="mono")
            if not lossless:
                audio.bit_rate = 160_000
            step = RATE_HZ // flash_beep.FPS
            for number, picture in enumerate(flash_beep.pictures(seconds, WIDTH, HEIGHT)):
                shown = VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
                shown.pts, shown.time_base = number, Fraction(1, flash_beep.FPS)
                container.mux(video.encode(shown))
                part = np.round(samples[None, number * step : (number + 1) * step] * 32767).astype(np.int16)
                heard = AudioFrame.from_ndarray(part, format="s16", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = RATE_HZ, number * step, Fraction(1, RATE_HZ)
                container.mux(audio.encode(heard))
            container.mux(video.encode())
            container.mux(audio.encode())
    except (av.FFmpegError, OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise SinkError(f"Cannot write {name}: {detail}. Name a file that ends in .mp4 or .mkv.") from error
