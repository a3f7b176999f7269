"""Which source delivers which stream of a recipe: files, folders, URLs, microphones, cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edgemm.errors import UsageError
from edgemm.recipe import AudioStream, Recipe, VideoStream, streamed
from edgemm.stream.sources.camera import CameraMode, open_camera
from edgemm.stream.sources.images import ImagesSource
from edgemm.stream.sources.media import MediaSource
from edgemm.stream.sources.microphone import open_microphone
from edgemm.stream.sources.network import NetworkSource
from edgemm.stream.sources.protocol import AudioWant, Source, VideoWant, Want
from edgemm.stream.sources.synthetic import SyntheticSource

Media = str | Path | Source
Device = str | int | bool | None
"""A microphone or camera: its name, path, URL or number; True is the default one, None or False is none."""

SYNTHETIC = "synthetic"


def open_sources(
    recipe: Recipe,
    input: Media | Mapping[str, Media] | None,
    *,
    mic: Device = None,
    camera: Device | Mapping[str, Device] = None,
    pixel_format: str | None = None,
    camera_options: Mapping[str, str] | None = None,
    fps: float = 25.0,
) -> list[Source]:
    """The sources, not yet entered, that deliver the streams which the recipe's models read.

    Raises UsageError if it cannot be said which stream an input or a device is for, or a stream has neither.
    """
    wants = stream_wants(recipe)
    devices: list[Source] = []
    if mic is not None and mic is not False:
        sound = _only([want for want in wants if isinstance(want, AudioWant)], "microphone", "sound")
        wants.remove(sound)
        if mic == camera and mic is not True:
            # One connection for both: the sender's clock then keeps them together.
            video = _only([want for want in wants if isinstance(want, VideoWant)], "camera", "picture")
            wants.remove(video)
            devices.append(_both(mic, [sound, video]))
            camera = None
        else:
            devices.append(open_microphone(None if mic is True else mic, sound))
    if isinstance(camera, Mapping):
        for name, device in camera.items():
            named = [want for want in wants if isinstance(want, VideoWant) and want.name == name]
            if not named:
                cameras = ", ".join(want.name for want in wants if isinstance(want, VideoWant)) or "none"
                raise UsageError(f'A camera was given for "{name}"; the recipe\'s models read the cameras: {cameras}.')
            devices.append(_camera(recipe, named[0], None if device is True else device, pixel_format, camera_options))
            wants.remove(named[0])
    elif camera is not None and camera is not False:
        video = _only([want for want in wants if isinstance(want, VideoWant)], "camera", "picture")
        devices.append(_camera(recipe, video, None if camera is True else camera, pixel_format, camera_options))
        wants.remove(video)
    if input is None:
        if wants:
            raise UsageError(
                f"Nothing was given for {', '.join(want.name for want in wants)}: "
                "give --input FILE, --mic for sound, --camera for pictures."
            )
        return devices
    if devices and not wants:
        raise UsageError("--mic and --camera give all that the recipe reads: leave out --input.")
    return [*devices, *_inputs(wants, input, fps)]


def _both(url: Device, wants: Sequence[Want]) -> Source:
    if not isinstance(url, str) or "://" not in url:
        raise UsageError(f'"{url}" was named as the microphone and as the camera: only a URL or a file can be both.')
    return NetworkSource(url, wants)


T = TypeVar("T", bound=Want)


def _only(wants: Sequence[T], device: str, stream: str) -> T:
    if len(wants) != 1:
        names = f" ({', '.join(want.name for want in wants)})" if wants else ""
        raise UsageError(
            f"A {device} was given, but the recipe's models read {len(wants) or 'no'} {stream} "
            f"stream{'' if len(wants) == 1 else 's'}{names}: expected one."
        )
    return wants[0]


def _camera(
    recipe: Recipe,
    want: VideoWant,
    device: str | int | None,
    pixel_format: str | None,
    options: Mapping[str, str] | None,
) -> Source:
    if isinstance(device, str) and Path(device).is_file():
        return MediaSource(device, [want])
    stream = recipe.streams[want.name]
    mode = CameraMode(pixel_format=pixel_format, controls=tuple((options or {}).items()))
    if isinstance(stream, VideoStream):
        # The rate is only asked for beside a size: a device that lacks it in its default size refuses altogether.
        fps = stream.fps if stream.width else None
        mode = replace(mode, width=stream.width, height=stream.height, fps=fps)
    return open_camera(device, want, mode)


def _inputs(wants: list[Want], input: Media | Mapping[str, Media], fps: float) -> list[Source]:
    if not isinstance(input, Mapping):
        for kind, name in ((AudioWant, "audio"), (VideoWant, "video")):
            same = [want.name for want in wants if isinstance(want, kind)]
            if len(same) > 1 and isinstance(input, str | Path):
                raise UsageError(
                    f"The recipe has {len(same)} {name} streams ({', '.join(same)}) and one input: "
                    "name an input for each stream."
                )
        return [_open_source(input, wants, fps)]
    unknown = set(input) - {want.name for want in wants}
    missing = [want.name for want in wants if want.name not in input]
    if unknown or missing:
        raise UsageError(
            f"Inputs were given for {', '.join(sorted(input)) or 'no stream'}, "
            f"the recipe's models read: {', '.join(want.name for want in wants)}."
        )
    # One pass over a file for all the streams that come from it.
    together: list[tuple[Media, list[Want]]] = []
    for want in wants:
        media = input[want.name]
        group = next((group for other, group in together if other is media or other == media), None)
        if group is None:
            together.append((media, [want]))
        else:
            group.append(want)
    return [_open_source(media, group, fps) for media, group in together]


def _open_source(media: Media, wants: Sequence[Want], fps: float) -> Source:
    if not isinstance(media, str | Path):
        return media
    if str(media) == SYNTHETIC:
        return SyntheticSource(wants, fps=fps)
    if Path(media).is_dir():
        videos = [want for want in wants if isinstance(want, VideoWant)]
        sounds = [want.name for want in wants if isinstance(want, AudioWant)]
        if sounds or len(videos) != 1:
            raise UsageError(
                f"{media} is a folder of images, but the recipe also reads {', '.join(sounds) or 'several videos'}: "
                "name an input for each stream."
            )
        return ImagesSource(media, videos[0], fps)
    return MediaSource(media, wants)


def stream_wants(recipe: Recipe) -> list[Want]:
    """What the recipe's streamed models ask of a source, in the order of the recipe's streams."""
    entries = [entry for name in streamed(recipe) for entry in recipe.models[name].inputs.values()]
    wants: list[Want] = []
    for name, stream in recipe.streams.items():
        readers = [entry for entry in entries if name in entry.reads]
        if not readers:
            continue
        if isinstance(stream, AudioStream):
            wants.append(AudioWant(name, stream.rate_hz))
        else:
            gray = all(entry.image is not None and entry.image.color == "gray" for entry in readers)
            wants.append(VideoWant(name, "gray" if gray else "rgb"))
    return wants
