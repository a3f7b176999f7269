"""The CUDA frame preparation kernel: one launch from a camera frame to the tensors of one or more of its parts.

    prepare = FramePrepKernel(ImageOptions(width=112, height=112), FrameFormat("nv12", 1280, 720), runner)
    prepare([luma, chroma], out)                          # the whole frame: out [1, 3, 112, 112]
    prepare([luma, chroma], out, crops=faces)             # faces [n, 4] int32 on the device: out [n, 3, 112, 112]

The kernel is in `kernels/csrc/frame_prep.cu`, formats and the float64 reference in `edgemm.kernels.frame_prep`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemm.errors import KernelError
from edgemm.kernels.frame_prep import FrameFormat, Int8, channel_factors, check_frame, yuv_matrix
from edgemm.kernels.launch import Runner, View, expect
from edgemm.options import ImageOptions

_FORMATS = {"nv12": 0, "yuyv": 1, "bgr": 2, "rgb": 3, "gray": 4}
_RESIZES = {"bilinear": 0, "area": 1, "nearest": 2}
_FITS = {"stretch": 0, "letterbox": 1, "crop": 2}
_COLORS = {"rgb": 0, "bgr": 1, "gray": 2}
_TYPES = {"float32": 0, "float16": 1, "uint8": 2, "int8": 3}
_BLOCK = (32, 8)
_MAX_GRID_Z = 65535


class _FramePrep(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("plane", "chroma", "crops", "crop_count", "out")),
        *((name, ctypes.c_longlong) for name in ("pitch", "chroma_pitch")),
        *((name, ctypes.c_int) for name in ("width", "height", "format", "out_width", "out_height")),
        *((name, ctypes.c_int) for name in ("resize", "fit", "color", "channels_last", "type")),
        *((name, ctypes.c_float) for name in ("luma_gain", "luma_offset", "red_v", "green_u", "green_v", "blue_u")),
        *((name, ctypes.c_float * 3) for name in ("gain", "bias", "bar")),
    )


class FramePrepKernel:
    """Crop, resize, convert, normalise and lay out frames of one format.

    With `int8` the output is int8 model input. `options.crop` is the part that is taken when a call names none.
    """

    def __init__(self, options: ImageOptions, frame: FrameFormat, runner: Runner, *, int8: Int8 | None = None) -> None:
        check_frame(frame, options, int8)
        self.options = options
        self.frame = frame
        self.dtype = "int8" if int8 else options.dtype
        self._runner = runner
        channels = 1 if options.color == "gray" else 3
        size = (options.height, options.width)
        self.shape = (channels, *size) if options.layout == "chw" else (*size, channels)
        """Of one prepared image."""
        self._crop: View | None = None
        if options.crop is not None:
            self._crop = runner.place(np.array([options.crop], np.int32))
        matrix = yuv_matrix(frame)
        gain, bias = (np.resize(values, 3) for values in channel_factors(options, int8))
        self._params = _FramePrep(
            width=frame.width,
            height=frame.height,
            format=_FORMATS[frame.pixels],
            out_width=options.width,
            out_height=options.height,
            resize=_RESIZES[options.resize],
            fit=_FITS[options.fit],
            color=_COLORS[options.color],
            channels_last=int(options.layout == "hwc"),
            type=_TYPES[self.dtype],
            luma_gain=matrix.luma_gain,
            luma_offset=matrix.luma_offset,
            red_v=matrix.red_v,
            green_u=matrix.green_u,
            green_v=matrix.green_v,
            blue_u=matrix.blue_u,
            gain=(ctypes.c_float * 3)(*gain),
            bias=(ctypes.c_float * 3)(*bias),
            bar=(ctypes.c_float * 3)(*[float(options.pad_value)] * 3),
        )

    def __call__(
        self, planes: Sequence[Any], out: Any, *, crops: Any = None, crop_count: Any = None, stream: Any = None
    ) -> None:
        """Prepare the frame `planes`, uint8, of the shapes that `frame.plane_shapes` gives; rows may be padded.

        `out` is `[images, *shape]` of `dtype`, contiguous. `crops` is `[images, 4]` int32: x, y, width and height,
        where the kernel runs, clipped to the frame by it; without it there is one image. `crop_count` `[1]` int32,
        also there, says how many of them hold, so that a detector's result needs no way over the host: the others
        become bars. The arrays are the caller's until the stream has passed. Raises KernelError before any launch if
        one does not fit.
        """
        shapes = self.frame.plane_shapes
        if len(planes) != len(shapes):
            raise KernelError(f"Found {len(planes)} planes; a frame of {self.frame.pixels} has {len(shapes)}.")
        names = ("the luma plane", "the chroma plane") if len(shapes) == 2 else ("the frame",)
        # The kernel reads U and V at once, and two pixels of yuyv at once.
        alignments = {"nv12": (1, 2), "yuyv": (4,)}.get(self.frame.pixels, (1,))
        views = []
        for plane, name, shape, alignment in zip(planes, names, shapes, alignments, strict=True):
            views.append(self._plane(self._runner.view(plane, name), shape, alignment))
        boxes = self._crop
        if crops is not None:
            boxes = self._runner.view(crops, "crops")
            expect(boxes, dtypes=("int32",), shape=(None, 4), alignment=16)
        images = boxes.shape[0] if boxes is not None else 1
        if images > _MAX_GRID_Z:
            raise KernelError(f"Found {images} crops; expected at most {_MAX_GRID_Z} in a launch.")
        target = self._runner.view(out, "out")
        expect(target, dtypes=(self.dtype,), shape=(images, *self.shape), written=True)
        count = None
        if crop_count is not None:
            count = self._runner.view(crop_count, "crop_count")
            expect(count, dtypes=("int32",), shape=(1,))
        if images == 0:
            return
        params = self._params
        params.plane, params.pitch = views[0].pointer, views[0].strides[0]
        params.chroma = views[1].pointer if len(views) > 1 else None
        params.chroma_pitch = views[1].strides[0] if len(views) > 1 else 0
        params.crops = boxes.pointer if boxes is not None else None
        params.crop_count = count.pointer if count is not None else None
        params.out = target.pointer
        grid = (-(-self.options.width // _BLOCK[0]), -(-self.options.height // _BLOCK[1]), images)
        self._runner.launch("frame_prep", "edgemm_frame_prep", params, grid=grid, block=_BLOCK, stream=stream)

    @staticmethod
    def _plane(view: View, shape: tuple[int, ...], alignment: int) -> View:
        expect(view, dtypes=("uint8",), shape=shape, contiguous=False, alignment=alignment)
        packed = {2: (1,), 3: (shape[-1], 1)}[len(shape)]
        if view.strides[1:] != packed or view.strides[0] < shape[1] * packed[0]:
            raise KernelError(
                f"{view.what} has strides {list(view.strides)}; expected whole rows of pixels side by side, "
                "with or without padding between them."
            )
        if view.strides[0] % alignment:
            raise KernelError(
                f"{view.what} has rows of {view.strides[0]} bytes; expected a multiple of {alignment}. Pad the rows."
            )
        return view
