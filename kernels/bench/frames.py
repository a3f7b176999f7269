"""Frame preparation on the device against torch, and against a copy of as many bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from front_end import torch_graph
from measure import Bench

from edgemm.kernels.frame_prep import FrameFormat, frame_prep_reference
from edgemm.kernels.frame_prep_cuda import FramePrepKernel
from edgemm.kernels.launch import CudaRunner
from edgemm.options import ImageOptions

AIM_OF_COPY = 0.7
CASES = (
    ("rgb 1280x720 to 224", FrameFormat("rgb", 1280, 720), ImageOptions(224, 224)),
    ("nv12 1280x720 to 224", FrameFormat("nv12", 1280, 720, "bt709"), ImageOptions(224, 224)),
    (
        "nv12 1920x1080 to 640 letterbox",
        FrameFormat("nv12", 1920, 1080, "bt709"),
        ImageOptions(640, 640, fit="letterbox"),
    ),
    ("rgb 1920x1080 as it is", FrameFormat("rgb", 1920, 1080), ImageOptions(1920, 1080)),
    ("nv12 1920x1080 to 224, area", FrameFormat("nv12", 1920, 1080, "bt709"), ImageOptions(224, 224, resize="area")),
)


def moved_bytes(frame: FrameFormat, options: ImageOptions) -> float:
    """What must be read and written: the source, or four taps a pixel where that is less, and the tensor."""
    source = sum(float(np.prod(shape)) for shape in frame.plane_shapes)
    pixels = options.width * options.height
    if options.resize == "bilinear":
        source = min(source, 4.0 * pixels * source / (frame.width * frame.height))
    return source + 4.0 * 3 * pixels


def run(bench: Bench, *, small: bool = False) -> None:
    """Measure each case, and eight faces of one frame in one launch."""
    device, runner = bench.device, CudaRunner(bench.device)
    random = np.random.default_rng(0)
    for case, frame, options in CASES[:1] if small else CASES:
        planes = [random.integers(0, 256, shape, dtype=np.uint8) for shape in frame.plane_shapes]
        given = [device.upload(plane) for plane in planes]
        kernel = FramePrepKernel(options, frame, runner)
        out = device.empty((1, *kernel.shape), np.float32)
        moved = moved_bytes(frame, options)

        def ours(stream: Any, kernel: Any = kernel, given: Any = given, out: Any = out) -> None:
            kernel(given, out, stream=stream)

        bench.add(f"frame {case}", "edgemm", ours, moved_bytes=moved, flops=0)
        worst = float(np.max(np.abs(out.download() - frame_prep_reference(planes, frame, options))))
        if not worst < 1e-4:
            bench.lacks(f"agreement of edgemm with float64 for {case}: {worst:.2e} off")
        if frame.pixels == "rgb":
            torch_resize(bench, f"frame {case}", planes[0], options, moved)
    frame, options = FrameFormat("nv12", 1920, 1080, "bt709"), ImageOptions(112, 112)
    kernel = FramePrepKernel(options, frame, runner)
    given = [device.upload(np.zeros(shape, np.uint8)) for shape in frame.plane_shapes]
    boxes = device.upload(np.array([(200 * i, 300, 160, 160) for i in range(8)], np.int32))
    out = device.empty((8, *kernel.shape), np.float32)
    bench.add(
        "8 faces of 160 to 112 from nv12 1920x1080",
        "edgemm",
        lambda stream: kernel(given, out, crops=boxes, stream=stream),
        moved_bytes=8 * (160 * 160 * 1.5 + 112 * 112 * 12),
        flops=0,
    )


def figures(bench: Bench) -> list[str]:
    """How near the kernel comes to a copy of as many bytes."""
    lines = []
    for row in bench.rows:
        if row.candidate == "edgemm" and row.stream and (row.case.startswith(("frame", "8 faces"))):
            part = row.moved_bytes / bench.bytes_per_us / row.stream.median_us
            lines.append(f"{row.case}: {part:.0%} of the speed of a copy; aim {AIM_OF_COPY:.0%}")
    return lines


def torch_resize(bench: Bench, case: str, pixels: Any, options: ImageOptions, moved: float) -> None:
    """The same with torch: permute, float, interpolate, scale."""
    torch = bench.optional("torch", "pip install torch, for the peers")
    if torch is None:
        return
    given = torch.from_numpy(pixels).cuda()

    def function(x: Any) -> Any:
        x = x.permute(2, 0, 1)[None].float()
        size = (options.height, options.width)
        return torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False) * options.scale

    for name, callee in (("torch", function), ("torch, compiled (Triton)", torch.compile(function))):

        def work(stream: Any, callee: Any = callee) -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)), torch.no_grad():
                callee(given)

        bench.add(case, name, work, moved_bytes=moved, flops=0, graph=torch_graph(torch, callee, given))
