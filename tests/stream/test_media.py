from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.stream.frames import AudioChunk, End, Event, Lost, VideoFrame
from edgemm.stream.sources.images import ImagesSource
from edgemm.stream.sources.media import MediaSource
from edgemm.stream.sources.protocol import AudioWant, Source, VideoWant, Want
from edgemm.stream.sources.synthetic import SyntheticSource

BOTH: tuple[Want, ...] = (AudioWant("mic", 16000), VideoWant("camera", "gray"))


def write_clip(
    path: Path,
    *,
    seconds: float = 3.0,
    offset_ms: float = 0.0,
    fps: int = 30,
    rate_hz: int = 48000,
    audio: str | None = "aac",
    video: str | None = "mpeg4",
    channels: int = 1,
    hole_s: tuple[float, float] | None = None,
    start_s: int = 0,
) -> Path:
    """A clip with a flash at 0.5 s of every second, and a beep `offset_ms` after it; no sound in `hole_s`."""
    with av.open(str(path), "w") as container:
        sound = (
            container.add_stream(audio, rate=rate_hz, layout="mono" if channels == 1 else "stereo") if audio else None
        )
        picture = container.add_stream(video, rate=fps) if video else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        if sound is not None:
            for begin in range(0, int(seconds * rate_hz), 1024):
                time_s = (begin + np.arange(1024)) / rate_hz
                if hole_s is not None and hole_s[0] <= time_s[0] < hole_s[1]:
                    continue
                phase_s = (time_s - offset_ms / 1000) % 1
                on = (phase_s >= 0.5) & (phase_s < 0.6)
                samples = np.where(on, 0.8 * np.sin(2 * np.pi * 1000 * (phase_s - 0.5)), 0).astype(np.float32)
                planes = np.stack([samples, -samples])[:channels] if channels == 2 else samples[None]
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(planes), "fltp", "mono" if channels == 1 else "stereo"
                )
                frame.sample_rate, frame.pts, frame.time_base = rate_hz, begin + start_s * rate_hz, Fraction(1, rate_hz)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        if picture is not None:
            for number in range(int(seconds * fps)):
                on = 0.5 <= Fraction(number, fps) % 1 < Fraction(6, 10)
                image = np.full((48, 64, 3), 255 if on else 16, np.uint8)
                shot = av.VideoFrame.from_ndarray(image, "rgb24")
                shot.pts, shot.time_base = number + start_s * fps, Fraction(1, fps)
                container.mux(picture.encode(shot))
            container.mux(picture.encode(None))
    return path


def read(source: Source) -> list[Event]:
    with source:
        return list(source)


def onset_ns(events: Sequence[Event]) -> tuple[list[int], list[int]]:
    """When each beep and each flash begins."""
    chunks = [e for e in events if isinstance(e, AudioChunk)]
    samples = np.concatenate([c.samples for c in chunks])
    times = np.concatenate([c.capture_ns + np.arange(len(c.samples)) * 1e9 / c.rate_hz for c in chunks])
    beeps: list[int] = []
    last = -1e9
    for time in times[np.abs(samples) > 0.15]:
        if time - last > 3e8:
            beeps.append(int(time))
        last = time
    flashes: list[int] = []
    before = False
    for frame in (e for e in events if isinstance(e, VideoFrame)):
        on = bool(frame.picture.mean() > 128)
        if on and not before:
            flashes.append(frame.capture_ns)
        before = on
    return beeps, flashes


@pytest.mark.parametrize("offset_ms", [-120, -40, 0, 80, 120])
@pytest.mark.parametrize(
    ("suffix", "audio", "rate_hz"), [("mp4", "aac", 48000), ("mkv", "pcm_s16le", 44100), ("mkv", "flac", 16000)]
)
def test_known_offsets_of_beep_and_flash_are_found_within_a_millisecond(
    tmp_path: Path, offset_ms: int, suffix: str, audio: str, rate_hz: int
) -> None:
    clip = write_clip(tmp_path / f"clip.{suffix}", offset_ms=offset_ms, audio=audio, rate_hz=rate_hz)
    beeps, flashes = onset_ns(read(MediaSource(clip, BOTH)))
    assert len(flashes) == 3
    assert flashes == pytest.approx([5e8, 15e8, 25e8], abs=1e6)
    # A beep that has begun before the first sample has no onset there.
    skews_ms = [(beep - flash) / 1e6 for beep, flash in zip(beeps[-3:], flashes, strict=True)]
    assert skews_ms == pytest.approx([offset_ms] * 3, abs=1.0)


def test_events_come_in_order_and_in_blocks_of_10_ms(tmp_path: Path) -> None:
    events = read(MediaSource(write_clip(tmp_path / "clip.mkv"), BOTH))
    assert [e.end_ns for e in events] == sorted(e.end_ns for e in events)
    chunks = [e for e in events if isinstance(e, AudioChunk)]
    assert {len(c.samples) for c in chunks[:-1]} == {160}
    assert all(c.samples.dtype == np.float32 and c.rate_hz == 16000 for c in chunks)
    assert [c.pts for c in chunks] == [160 * n for n in range(len(chunks))]
    assert not any(c.discontinuity for c in chunks)
    assert {e.stream for e in events if isinstance(e, End)} == {"mic", "camera"}
    frames = [e for e in events if isinstance(e, VideoFrame)]
    assert len(frames) == 90
    assert frames[0].picture.shape == (48, 64)
    assert frames[31].capture_ns == pytest.approx(31e9 / 30, abs=1e6)  # Matroska keeps milliseconds


def test_streams_are_described_before_the_first_frame(tmp_path: Path) -> None:
    with MediaSource(write_clip(tmp_path / "clip.mkv"), BOTH) as source:
        mic, camera = source.streams
        assert (mic.name, mic.kind, mic.rate_hz) == ("mic", "audio", 16000)
        assert (camera.name, camera.kind, camera.width, camera.height) == ("camera", "video", 64, 48)
        assert camera.interval_ns == pytest.approx(1e9 / 30, abs=1)


def test_channels_are_averaged(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", channels=2, audio="pcm_s16le", video=None)
    samples = np.concatenate([e.samples for e in read(MediaSource(clip, BOTH[:1])) if isinstance(e, AudioChunk)])
    assert np.abs(samples).max() < 1e-3  # one channel is the other, negated


def test_colours_are_those_asked_for(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", audio=None)
    frame = read(MediaSource(clip, [VideoWant("camera", "rgb")]))[0]
    assert isinstance(frame, VideoFrame)
    assert frame.picture.shape == (48, 64, 3)
    assert frame.color == "rgb"


def test_what_is_not_wanted_is_ignored(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv")
    assert {e.stream for e in read(MediaSource(clip, BOTH[:1]))} == {"mic"}
    assert {e.stream for e in read(MediaSource(clip, BOTH[1:]))} == {"camera"}


def test_time_counts_from_the_start_of_the_file(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", start_s=7, audio="pcm_s16le")
    events = read(MediaSource(clip, BOTH))
    assert events[0].end_ns == pytest.approx(0, abs=1e7)
    assert onset_ns(events)[1] == pytest.approx([5e8, 15e8, 25e8], abs=1e6)


def test_a_hole_in_the_sound_is_marked(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", hole_s=(1.0, 1.4), audio="pcm_s16le", video=None)
    chunks = [e for e in read(MediaSource(clip, BOTH[:1])) if isinstance(e, AudioChunk)]
    marked = [n for n, c in enumerate(chunks) if c.discontinuity]
    assert len(marked) == 1
    assert chunks[marked[0]].capture_ns - chunks[marked[0] - 1].end_ns == pytest.approx(4e8, abs=3e7)
    assert chunks[-1].end_ns == pytest.approx(3e9, abs=3e7)


def test_a_clip_of_a_phone_held_upright_stands_upright(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        image = np.zeros((48, 64, 3), np.uint8)
        image[:16, :16] = 255  # top left
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    # The matrix of the track header says: turn it clockwise (ISO 14496-12, 8.3.2).
    one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
    upright = one + 3 * zero + one + 3 * zero
    turned = zero + one + zero + (-(1 << 16)).to_bytes(4, "big", signed=True) + 4 * zero
    data = clip.read_bytes()
    at = data.index(upright, data.index(b"tkhd"))
    clip.write_bytes(data[:at] + turned + data[at + len(turned) :])
    frame = read(MediaSource(clip, BOTH[1:]))[0]
    assert isinstance(frame, VideoFrame)
    assert frame.picture.shape == (64, 48)
    assert frame.picture[:14, -14:].min() > 200  # top right
    assert frame.picture[20:].max() < 50


def test_a_wav_file_is_sound(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.wav", audio="pcm_s16le", video=None, rate_hz=16000)
    chunks = [e for e in read(MediaSource(clip, BOTH[:1])) if isinstance(e, AudioChunk)]
    assert sum(len(c.samples) for c in chunks) == 47 * 1024


# Clips that cannot be used.


def refusal(path: Path, wants: Sequence[Want] = BOTH) -> str:
    with pytest.raises(SourceError) as caught:
        read(MediaSource(path, wants))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.mp4").endswith("none.mp4: there is no such file.")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert "is empty (0 bytes): expected a media file" in refusal(tmp_path / "empty.mp4")


def test_a_folder(tmp_path: Path) -> None:
    assert "Cannot open" in refusal(tmp_path)


def test_bytes_that_are_no_media(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    assert "Expected a file or URL that FFmpeg can read" in refusal(tmp_path / "noise.mp4")


def test_a_clip_that_was_cut_before_its_index(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    clip.write_bytes(clip.read_bytes()[:4000])
    assert "Cannot open" in refusal(clip)


def test_a_clip_without_sound(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "silent.mkv", audio=None)
    message = refusal(clip)
    assert 'holds 1 video stream and no sound, but the recipe\'s stream "mic" needs sound' in message
    assert read(MediaSource(clip, BOTH[1:]))


def test_a_clip_without_pictures(tmp_path: Path) -> None:
    assert "holds 1 audio stream and no pictures" in refusal(write_clip(tmp_path / "blind.mkv", video=None))


def test_a_damaged_clip_gives_what_is_good_and_counts_the_rest(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    data = bytearray(clip.read_bytes())
    middle = slice(len(data) // 3, len(data) // 3 + 3000)
    data[middle] = np.random.default_rng(1).bytes(3000)
    clip.write_bytes(data)
    events = read(MediaSource(clip, BOTH))
    lost = [e for e in events if isinstance(e, Lost)]
    assert lost
    assert {e.cause for e in lost} == {"corrupt"}
    assert len([e for e in events if isinstance(e, VideoFrame)]) > 30
    assert len([e for e in events if isinstance(e, AudioChunk)]) > 100


def test_a_stream_of_which_nothing_can_be_decoded(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", video=None, audio="flac")
    data = bytearray(clip.read_bytes())
    start = data.find(b"\xff\xf8")
    data[start:] = bytes(len(data) - start)
    clip.write_bytes(data)
    assert "holds no sound that can be decoded" in refusal(clip, BOTH[:1])


def test_a_source_that_is_not_entered(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not open"):
        iter(MediaSource(tmp_path / "clip.mp4", BOTH))


def test_badly_interleaved_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemm.stream.sources.media._MAX_WAITING_BYTES", 100)
    assert "badly interleaved" in refusal(write_clip(tmp_path / "clip.mp4", audio="aac"))


# Folders of images.


def write_images(folder: Path, names: Sequence[str]) -> Path:
    for value, name in enumerate(names):
        with av.open(str(folder / name), "w", format="image2", options={"update": "1"}) as container:
            stream = container.add_stream("png" if name.endswith("png") else "mjpeg", rate=1)
            stream.width, stream.height = 8, 6
            stream.pix_fmt = "rgb24" if name.endswith("png") else "yuvj420p"
            frame = av.VideoFrame.from_ndarray(np.full((6, 8, 3), value, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return folder


def test_images_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.png", "2.png", "10.png"])
    (tmp_path / "notes.txt").write_text("not an image")
    with ImagesSource(tmp_path, VideoWant("camera"), fps=29.97) as source:
        assert source.streams[0].interval_ns == 33366700
        frames = [e for e in source if isinstance(e, VideoFrame)]
    assert [int(f.picture[0, 0, 0]) for f in frames] == [0, 1, 2]
    assert [f.capture_ns for f in frames] == [0, 33366700, 66733400]
    assert [(f.pts, f.time_base) for f in frames] == [(n, Fraction(100, 2997)) for n in range(3)]
    assert frames[0].picture.shape == (6, 8, 3)


def test_a_damaged_image_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png", "c.jpg"])
    (tmp_path / "b.png").write_bytes(b"not a png")
    events = read(ImagesSource(tmp_path, VideoWant("camera", "gray")))
    assert [type(e) for e in events] == [VideoFrame, Lost, VideoFrame]
    assert isinstance(events[0], VideoFrame)
    assert events[0].picture.shape == (6, 8)


def test_folders_without_a_good_image(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no image, expected files like 0001.png"):
        read(ImagesSource(tmp_path, VideoWant("camera")))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"holds no image that can be read \(a.png"):
        read(ImagesSource(tmp_path, VideoWant("camera")))
    with pytest.raises(SourceError, match="Cannot read the folder"):
        read(ImagesSource(tmp_path / "none", VideoWant("camera")))


# Synthetic.


@pytest.mark.parametrize("offset_ms", [-80.0, 0.0, 35.0])
def test_the_synthetic_source_has_the_offset_it_was_asked_for(offset_ms: float) -> None:
    events = read(SyntheticSource(BOTH, seconds=3, offset_ms=offset_ms))
    beeps, flashes = onset_ns(events)
    assert flashes == pytest.approx([520e6, 1520e6, 2520e6])  # the first picture of 25 a second in the flash
    assert [b / 1e6 for b in beeps] == pytest.approx([500 + offset_ms, 1500 + offset_ms, 2500 + offset_ms], abs=0.3)
    assert [e.end_ns for e in events] == sorted(e.end_ns for e in events)


def test_the_synthetic_source_is_the_same_every_time() -> None:
    def once() -> Iterator[bytes]:
        for event in read(SyntheticSource([AudioWant("mic"), VideoWant("camera")], seconds=1, fps=10)):
            assert isinstance(event, AudioChunk | VideoFrame)
            yield event.samples.tobytes() if isinstance(event, AudioChunk) else event.picture.tobytes()

    assert list(once()) == list(once())
