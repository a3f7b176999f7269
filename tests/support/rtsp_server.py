"""An RTSP server for tests, by gst-rtsp-server: a file's sound and pictures as they are, or a test picture.

    python rtsp_server.py PORT FILE|test

FILE is Matroska with MJPEG or H.264 and 16-bit PCM; every client gets it from its beginning. With `test` the picture
is a moving ball, without sound, whose size changes every three seconds. Prints "ready", and for every client that
plays `begin NS`: when, by the machine's monotonic clock, the file's time 0 was.
"""

from __future__ import annotations

import sys
from itertools import cycle

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - after the versions are chosen

SIZES = ((320, 240), (160, 120), (641, 363))
PLAY = """( filesrc location={file} ! matroskademux name=d
  d.video_0 ! queue ! {pictures} name=pay0 pt=96
  d.audio_0 ! queue ! audioconvert ! rtpL16pay name=pay1 pt=97 max-ptime=10000000 )"""
TEST = "( videotestsrc is-live=true pattern=ball ! capsfilter name=size caps={caps} ! jpegenc ! rtpjpegpay name=pay0 )"


def caps(size: tuple[int, int]) -> str:
    """Raw pictures of this size, 25 a second."""
    return f"video/x-raw,format=I420,width={size[0]},height={size[1]},framerate=25/1"


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """See the module's description."""
    port, file = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.props.service = port
    server.props.address = "127.0.0.1"
    factory = GstRtspServer.RTSPMediaFactory()
    if file == "test":
        factory.set_launch(TEST.format(caps=caps(SIZES[0])))
        factory.connect("media-configure", on_test)
    else:
        pictures = "rtph264pay config-interval=-1" if file.endswith("h264.mkv") else "rtpjpegpay"
        factory.set_launch(PLAY.format(file=file, pictures=pictures))
        factory.connect("media-configure", on_media)
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    say("ready")
    GLib.MainLoop().run()


def on_media(_factory: object, media: GstRtspServer.RTSPMedia) -> None:
    """Say when the clip begins for a client."""

    seen: list[int] = []

    def on_state(_media: object, state: int) -> None:
        if state == int(Gst.State.PLAYING):
            # It is handed to the pipeline's elements somewhat later.
            GLib.timeout_add(100, told)

    def told() -> bool:
        pipeline = media.get_element()
        result, current, _ = pipeline.get_state(0)
        if result != Gst.StateChangeReturn.SUCCESS or current != Gst.State.PLAYING:
            return True
        seen.append(pipeline.get_base_time())
        if len(seen) < 3 or len(set(seen[-3:])) > 1:
            return True
        say(f"begin {seen[-1]}")
        return False

    media.connect("new-state", on_state)


def on_test(_factory: object, media: GstRtspServer.RTSPMedia) -> None:
    """Change the picture's size every three seconds."""
    sizes = cycle((*SIZES[1:], SIZES[0]))

    def change() -> bool:
        media.get_element().get_by_name("size").set_property("caps", Gst.Caps.from_string(caps(next(sizes))))
        return True

    GLib.timeout_add(3000, change)


if __name__ == "__main__":
    main()
