"""Frame preparation on the device against torch, and against a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from front_end import Peer, compiled, on, torch_graph
from measure import Bench
from results import Row, times

from edgemm.kernels.frame_prep import FrameFormat, frame_prep_reference, regions
from edgemm.kernels.frame_prep_cuda import FramePrepKernel
from edgemm.kernels.launch import CudaRunner
from edgemm.options import ImageOptions

AIM_OF_COPY = 0.7
TOLERANCE = 1e-4
"""Of a pixel in 0..1: positions and weights in float32."""
PEER_TOLERANCE = 1e-3
"""torch works out positions in float32, from the scale: 1e-4 at the right edge of a wide picture."""
FACES = "8 faces of 160 to 112 from nv12 1920x1080"
BT709 = [[1.16438, 0.0, 1.79274], [1.16438, -0.21325, -0.53291], [1.16438, 2.11240, 0.0]]
"""Limited-range YCbCr to RGB (ITU-R BT.709-6), rows R, G, B."""
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
    runner = CudaRunner(bench.device)
    for case, frame, options in CASES[:1] if small else CASES:
        name = f"frame {case}"
        bench.case(name, lambda name=name, frame=frame, options=options: measure(bench, runner, name, frame, options))
    bench.case(FACES, lambda: measure_faces(bench, runner))


def measure(bench: Bench, runner: CudaRunner, case: str, frame: FrameFormat, options: ImageOptions) -> None:
    """Ours, compared with float64, and torch's where it takes the format."""
    random = np.random.default_rng(0)
    planes = [random.integers(0, 256, shape, dtype=np.uint8) for shape in frame.plane_shapes]
    given = [bench.device.upload(plane) for plane in planes]
    kernel = FramePrepKernel(options, frame, runner)
    out = bench.device.empty((1, *kernel.shape), np.float32)
    moved = moved_bytes(frame, options)
    reference = frame_prep_reference(planes, frame, options)
    if bench.add(case, "edgemm", lambda stream: kernel(given, out, stream=stream), moved_bytes=moved, flops=0):
        bench.agrees(f"edgemm for {case}", out.download(), reference, TOLERANCE)
    for peer in torch_resize(bench, planes, frame, options):
        added = bench.add(case, peer.name, peer.work, moved_bytes=moved, flops=0, graph=peer.graph)
        # torch's area is the mean of whole pixels, whatever part of them a pixel covers
        if added and options.resize == "bilinear":
            bench.agrees(f"{peer.name} for {case}", peer.result(), reference, PEER_TOLERANCE)
    for buffer in (*given, out):
        buffer.close()


def measure_faces(bench: Bench, runner: CudaRunner) -> None:
    """Eight crops of one frame in one launch."""
    device = bench.device
    frame, options = FrameFormat("nv12", 1920, 1080, "bt709"), ImageOptions(112, 112)
    kernel = FramePrepKernel(options, frame, runner)
    given = [device.upload(np.zeros(shape, np.uint8)) for shape in frame.plane_shapes]
    boxes = device.upload(np.array([(200 * i, 300, 160, 160) for i in range(8)], np.int32))
    out = device.empty((8, *kernel.shape), np.float32)
    bench.add(
        FACES,
        "edgemm",
        lambda stream: kernel(given, out, crops=boxes, stream=stream),
        moved_bytes=8 * (160 * 160 * 1.5 + 112 * 112 * 12),
        flops=0,
    )


def figures(rows: Sequence[Row], bytes_per_us: float) -> list[str]:
    """How near the kernel comes to a copy of as many bytes, and to the fastest torch."""
    lines = []
    for row in rows:
        if row.candidate != "edgemm":
            continue
        part = row.moved_bytes / bytes_per_us / row.stream.median_us
        line = f"{row.case}: {part:.0%} of the speed of a copy; aim {AIM_OF_COPY:.0%}"
        peers = [time.median_us for name, time in times(rows, row.case).items() if name != "edgemm"]
        lines.append(f"{line}; {min(peers) / row.stream.median_us:.1f}x the fastest torch" if peers else line)
    return lines


def torch_resize(bench: Bench, planes: list[Any], frame: FrameFormat, options: ImageOptions) -> Iterator[Peer]:
    """The same with torch, eager and compiled (Triton): float, colour, interpolate, scale."""
    torch = bench.optional("torch", "pip install torch, for the peers")
    if torch is None or options.resize == "nearest" or options.fit == "crop":
        return
    given = [torch.from_numpy(plane).cuda() for plane in planes]
    matrix = torch.tensor(BT709).cuda()
    held: dict[str, Any] = {}

    def function(*tensors: Any) -> Any:
        if frame.pixels == "nv12":
            luma, chroma = (tensor.float() for tensor in tensors)
            chroma = (
                chroma.reshape(frame.height // 2, frame.width // 2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
            )
            yuv = torch.cat((luma[..., None] - 16.0, chroma - 128.0), 2)
            x = (yuv @ matrix.T).clamp(0.0, 255.0).permute(2, 0, 1)[None]
        else:
            x = tensors[0].permute(2, 0, 1)[None].float()
        _, (left, top, width, height) = regions((0, 0, frame.width, frame.height), options)
        mode = {"bilinear": {"mode": "bilinear", "align_corners": False}, "area": {"mode": "area"}}[options.resize]
        x = torch.nn.functional.interpolate(x, size=(height, width), **mode) * options.scale
        if options.fit == "letterbox":
            margins = (left, options.width - width - left, top, options.height - height - top)
            x = torch.nn.functional.pad(x, margins, value=options.pad_value * options.scale)
        return x

    for name, callee in (("torch", function), ("torch, compiled (Triton)", compiled(torch, function))):

        def work(stream: Any, callee: Any = callee) -> None:
            with on(torch, stream), torch.no_grad():
                held["out"] = callee(*given)

        yield Peer(
            name, work, lambda callee=callee: torch_graph(torch, callee, *given), lambda: held["out"].cpu().numpy()
        )
