"""Plays a clip as if a camera and a microphone were before it: pictures as NUT over TCP, sound to a player's pipe.

    python camera_feed.py CLIP PORT SECONDS [--sound]

Waits for a viewer, prints the machine's monotonic time (ns) at which the clip begins, then sends each picture at its
time. With `--sound` the clip's sound goes to standard output in real time as 16 kHz int16, ahead by the player's
buffer; before it comes silence.
"""

from __future__ import annotations

import sys
import threading
import time
from fractions import Fraction

import av
from av.audio.resampler import AudioResampler

LEAD_S = 3.0
"""From the viewer's connection to the clip's begin: the source throws its first pictures away, and learns delays."""

AHEAD_S = 0.2
"""How far sound is written ahead: the player's buffer, which it fills before it begins."""


def main() -> None:
    """See the module's description."""
    clip, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    pictures, sounds = [], []
    with av.open(clip) as container:
        for frame in container.decode(*container.streams.video[:1], *container.streams.audio[:1]):
            if frame.time is not None and frame.time > seconds:
                break
            (pictures if isinstance(frame, av.VideoFrame) else sounds).append(frame)
    resampler = AudioResampler(format="s16", layout="mono", rate=16000)
    sound = b"".join(part.to_ndarray().tobytes() for frame in [*sounds, None] for part in resampler.resample(frame))
    output = av.open(f"tcp://127.0.0.1:{port}?listen=1", "w", format="nut", options={"flush_packets": "1"})
    stream = output.add_stream("mjpeg", rate=25)
    stream.width, stream.height, stream.pix_fmt = pictures[0].width, pictures[0].height, "yuvj420p"
    stream.codec_context.time_base = Fraction(1, 1000)
    stream.codec_context.qmin = stream.codec_context.qmax = 2
    output.start_encoding()  # here the viewer is waited for
    begin_ns = time.monotonic_ns() + round(LEAD_S * 1e9)
    sys.stderr.write(f"{begin_ns}\n")
    sys.stderr.flush()
    player = threading.Thread(target=play, args=(sound, begin_ns), daemon=True)
    if "--sound" in sys.argv:
        player.start()
    # While the clip has not begun, its first picture is sent: a camera never pauses.
    schedule = [(number / 25 - LEAD_S, pictures[0]) for number in range(int(LEAD_S * 25))]
    for time_s, picture in [*schedule, *((float(frame.time), frame) for frame in pictures)]:
        wait_s = begin_ns / 1e9 + time_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        shown = picture.reformat(format="yuvj420p")
        shown.pts, shown.time_base = round((time_s + LEAD_S) * 1000), Fraction(1, 1000)
        output.mux(stream.encode(shown))
    output.close()


def play(sound: bytes, begin_ns: int) -> None:
    """Write silence until the clip begins, then `sound`, never more than the player's buffer ahead of its time."""
    first_ns = time.monotonic_ns()
    silence = max(0, (begin_ns - first_ns) * 16 // 10**6) * 2
    whole = bytes(silence) + sound
    for begin in range(0, len(whole), 320):
        wait_s = first_ns / 1e9 + begin / 32000 - AHEAD_S - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        sys.stdout.buffer.write(whole[begin : begin + 320])
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
