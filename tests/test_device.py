"""The driver layer: without a driver what it says, and on the driver stub what it does, through both backends."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import driver_stub
import numpy as np
import pytest
from driver_stub import on_the_stub

from edgemm import device
from edgemm.device import Device, array_view, open_device, stream_handle
from edgemm.device.cuda_bindings import CudaBindings
from edgemm.device.pycuda import PyCuda
from edgemm.errors import DeviceError, KernelError, MissingExtraError, UsageError
from edgemm.kernels.compile import find_compiler
from edgemm.kernels.frame_prep import FrameFormat
from edgemm.kernels.frame_prep_cuda import FramePrepKernel
from edgemm.kernels.launch import CudaRunner, EmulatorRunner
from edgemm.kernels.log_mel_cuda import LogMelKernel
from edgemm.options import ImageOptions, LogMelOptions

ELF = b"\x7fELF" + bytes(60)
"""All that the stub asks of a cubin."""


@pytest.fixture(params=["cuda-bindings", "pycuda"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device on the stub; it must have given everything back in the end."""
    if request.param == "pycuda":
        try:
            importlib.import_module("pycuda.driver")
        except ImportError:
            importlib.import_module("pycuda_double").install()
    else:
        pytest.importorskip("cuda.bindings.driver", reason='pip install "edgemm[kernels]"')
    with open_device(backend=request.param) as opened:
        assert opened.backend == request.param
        yield opened
    assert driver_stub.held() == 0
    assert driver_stub.contexts() == 0


def test_on_the_driver_stub(tmp_path: Path) -> None:
    if driver_stub.ACTIVE in os.environ:
        pytest.skip("this is the process that it starts")
    pytest.importorskip("cuda.bindings.driver", reason='pip install "edgemm[kernels]"')
    driver_stub.run_again(__file__, tmp_path)


# ---- on the stub ----


@on_the_stub
def test_what_the_device_is(gpu: Device) -> None:
    assert gpu.info == device.DeviceInfo(0, "Emulated GPU", 87, True, 8, 8 << 30)
    assert gpu.arch == 87


@on_the_stub
def test_memory_goes_there_and_back(gpu: Device) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    buffer = gpu.upload(values)
    np.testing.assert_array_equal(buffer.download(), values)
    stream = gpu.stream()
    gpu.fill(buffer.pointer, 0, 16, stream)
    gpu.fill(buffer.pointer, 1, 0)
    np.testing.assert_array_equal(buffer.download(stream)[0], 0)
    assert gpu.empty((0, 5), np.int32).download().shape == (0, 5)
    view = array_view(buffer, "x")
    assert (view.pointer, view.shape, view.dtype, view.strides) == (buffer.pointer, (3, 4), np.float32, None)
    buffer.close()
    buffer.close()


@on_the_stub
def test_pinned_memory_is_the_hosts_too(gpu: Device) -> None:
    buffer = gpu.pinned((4,), np.int16)
    buffer.host[:] = [1, 2, 3, 4]
    np.testing.assert_array_equal(buffer.download(), [1, 2, 3, 4])
    with pytest.raises(UsageError, match="which the host cannot read. Use `download`"):
        _ = gpu.empty((4,), np.int16).host


@on_the_stub
@pytest.mark.parametrize("array", [np.zeros(4, np.float32), np.zeros((3, 3)), np.zeros((6, 3), np.float32)[::2]])
def test_an_upload_that_does_not_fit(gpu: Device, array: Any) -> None:
    with pytest.raises(UsageError, match=r"expected a contiguous float32\[3, 3\]"):
        gpu.empty((3, 3), np.float32).upload(array)


@on_the_stub
def test_streams_and_events(gpu: Device) -> None:
    one, two = gpu.stream(), gpu.stream()
    before, after = gpu.event().record(one), gpu.event()
    two.wait(before)
    after.record(two)
    two.synchronize()
    assert after.milliseconds_since(before) == 0.25
    gpu.order_after(one.handle, two)
    gpu.order_after(two.handle, two)
    for thing in (one, before):
        thing.close()
        thing.close()


@on_the_stub
def test_what_the_driver_refuses(gpu: Device) -> None:
    with pytest.raises(DeviceError, match="INVALID_IMAGE|invalid"):
        gpu.load_module(b"PTX is not enough" * 4)
    module = gpu.load_module(ELF)
    with pytest.raises(DeviceError, match="NOT_FOUND|not found"):
        module.launch("no_such_kernel", _Nothing(), grid=(1,), block=(1,))
    with pytest.raises(DeviceError, match="INVALID_VALUE|invalid"):
        module.launch("edgemm_frame_prep", _Nothing(), grid=(1,), block=(1024, 2))
    with pytest.raises(DeviceError, match="INVALID_VALUE|invalid"):
        module.launch("edgemm_frame_prep", _Nothing(), grid=(1,), block=(32,), shared_bytes=1 << 20)
    module.close()


class _Nothing(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char * 512),)


@on_the_stub
def test_kernels_run_as_under_the_emulator(gpu: Device) -> None:
    samples = np.random.default_rng(0).standard_normal((2, 9000)).astype(np.float32)
    options = LogMelOptions(fft_size=2048, window_samples=2000)  # more shared memory than a kernel has unasked
    runner, stream = cuda_runner(gpu), gpu.stream()
    kernel = LogMelKernel(options, runner)
    out = gpu.empty((2, kernel.frame_count(9000), 80), np.float32)
    kernel(gpu.upload(samples), out, stream=stream)
    expected = np.empty(out.shape, np.float32)
    LogMelKernel(options, EmulatorRunner())(samples, expected)
    np.testing.assert_array_equal(out.download(stream), expected)


@on_the_stub
def test_a_frame_in_pinned_memory(gpu: Device) -> None:
    frame = FrameFormat("gray", 20, 10)
    pixels = gpu.pinned((10, 20), np.uint8)
    pixels.host[:] = np.arange(200).reshape(10, 20)
    kernel = FramePrepKernel(ImageOptions(20, 10, scale=1.0, color="gray"), frame, cuda_runner(gpu))
    out = gpu.empty((1, 1, 10, 20), np.float32)
    kernel([pixels], out)
    np.testing.assert_array_equal(out.download()[0, 0], pixels.host)


@on_the_stub
def test_a_hop_in_a_graph_is_replayed(gpu: Device) -> None:
    if gpu.backend == "pycuda":
        stream = gpu.stream()
        with pytest.raises(DeviceError, match="no stream capture.*Use the backend cuda-bindings"), gpu.capture(stream):
            pass
        return
    samples = np.random.default_rng(1).standard_normal((1, 1600)).astype(np.float32)
    runner = cuda_runner(gpu)
    microphone = LogMelKernel(LogMelOptions(), runner).open_stream(1, 160)
    runner.prepare("log_mel")
    chunk, stream = gpu.pinned((1, 160), np.float32), gpu.stream()
    out, counts = gpu.empty((1, microphone.max_frames, 80), np.float32), gpu.empty((1,), np.int32)
    with gpu.capture(stream) as graph:
        microphone.push(chunk, out, counts, stream=stream)
    rows = []
    for at in range(0, 1600, 160):
        chunk.host[:] = samples[:, at : at + 160]
        graph.launch(stream)
        rows.append(out.download(stream)[0, : int(counts.download(stream)[0])])
    expected = np.empty((1, 8, 80), np.float32)
    LogMelKernel(LogMelOptions(), EmulatorRunner())(samples, expected)
    np.testing.assert_array_equal(np.concatenate(rows), expected[0])
    microphone.reset(stream)
    graph.close()


class Written:
    """A buffer that says in which stream it was written."""

    def __init__(self, buffer: Any, stream: int) -> None:
        self.__cuda_array_interface__ = buffer.__cuda_array_interface__ | {"stream": stream}


@on_the_stub
def test_an_array_is_waited_for_in_the_stream_that_wrote_it(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(gpu._driver, "wait", lambda stream, event: waited.append(stream))
    theirs, ours = gpu.stream(), gpu.stream()
    kernel = LogMelKernel(LogMelOptions(), cuda_runner(gpu))
    samples, out = gpu.upload(np.zeros((1, 400), np.float32)), gpu.empty((1, 1, 80), np.float32)
    kernel(Written(samples, theirs.handle), out, stream=ours)
    assert waited == [ours.handle]
    kernel(Written(samples, ours.handle), out, stream=ours)
    kernel(Written(samples, 1), out)  # the default stream, by its other name
    kernel(samples, out, stream=ours)
    if gpu.backend == "cuda-bindings":
        with gpu.capture(ours):
            kernel(Written(samples, theirs.handle), out, stream=ours)
    assert waited == [ours.handle]


@on_the_stub
def test_a_capture_that_fails_leaves_the_stream_usable(gpu: Device) -> None:
    if gpu.backend == "pycuda":
        pytest.skip("PyCUDA has no stream capture")
    stream = gpu.stream()
    with pytest.raises(ValueError, match="on purpose"), gpu.capture(stream) as graph:
        raise ValueError("on purpose")
    stream.synchronize()
    with pytest.raises(UsageError, match="The graph is not recorded yet"):
        graph.launch(stream)
    with pytest.raises(DeviceError, match="CAPTURE_UNSUPPORTED"), gpu.capture(stream):
        stream.synchronize()


@on_the_stub
def test_streams_of_other_libraries(gpu: Device) -> None:
    if gpu.backend == "pycuda":
        theirs = sys.modules["pycuda.driver"].Stream()
        event = gpu.event().record(theirs)
        gpu.order_after(theirs.handle, gpu.stream())
        event.close()
        with pytest.raises(UsageError, match="was not made by this device, and PyCUDA cannot wrap it"):
            gpu.event().record(0x1234)
        with pytest.raises(UsageError, match="cannot let the default stream wait"):
            gpu.order_after(theirs.handle, None)
        del theirs
    else:
        theirs = SimpleNamespace(cuda_stream=gpu.stream().handle)
        gpu.event().record(theirs)


@on_the_stub
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, gpu: Device) -> None:
    with pytest.raises(DeviceError, match="Found 1 CUDA devices; there is no device 3"):
        open_device(3, backend=gpu.backend)
    monkeypatch.setenv("EDGEMM_STUB_DEVICES", "0")
    with pytest.raises(DeviceError, match="Found 0 CUDA devices; there is no device 0"):
        open_device(backend=gpu.backend)


@on_the_stub
def test_the_first_backend_is_cuda_bindings_then_pycuda(monkeypatch: pytest.MonkeyPatch, gpu: Device) -> None:
    assert open_device().backend == "cuda-bindings"
    monkeypatch.setattr(CudaBindings, "_import", staticmethod(no_bindings))
    if "pycuda.driver" not in sys.modules:
        importlib.import_module("pycuda_double").install()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert open_device().backend == "pycuda"


def no_bindings() -> Any:
    raise MissingExtraError("CUDA", "kernels", "cuda.bindings")


def cuda_runner(gpu: Device) -> CudaRunner:
    """A runner whose cubins are compiled where there is a compiler; the stub asks only for their first bytes."""
    runner = CudaRunner(gpu)
    try:
        find_compiler(gpu.arch)
    except KernelError:
        for source in ("log_mel", "frame_prep"):
            runner._modules[source] = gpu.load_module(ELF)
    return runner


# ---- without a driver ----


def test_no_backend_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaBindings, "_import", staticmethod(no_bindings))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgemm\[kernels\]"'):
        open_device()


def test_cuda_bindings_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match='needs the Python module "cuda.bindings"'):
        open_device(backend="cuda-bindings")


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(flags: int) -> None:
        raise RuntimeError('"cuda" is an NVIDIA driver library')

    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", SimpleNamespace(cuInit=fail))
    with pytest.raises(DeviceError, match="Found no NVIDIA driver .* or use the CPU engine"):
        open_device(backend="cuda-bindings")


def test_pycuda_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeviceError, match='"pycuda", which is not installed'):
        open_device(backend="pycuda")


def test_pycuda_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(DeviceError, match="PyCUDA cannot load the NVIDIA driver: libcuda.so.1"):
        open_device(backend="pycuda")


def test_an_unknown_backend() -> None:
    with pytest.raises(UsageError, match='"cupy"|\'cupy\'; expected "cuda-bindings" or "pycuda"'):
        open_device(backend="cupy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (None, 0),
        (7, 7),
        (SimpleNamespace(handle=8), 8),  # PyCUDA
        (SimpleNamespace(cuda_stream=9), 9),  # torch
        (SimpleNamespace(ptr=10), 10),  # CuPy
        (SimpleNamespace(__cuda_stream__=lambda: (0, 11)), 11),
        (SimpleNamespace(__cuda_stream__=(0, 12)), 12),
    ],
)
def test_handles_of_streams(stream: Any, handle: int) -> None:
    assert stream_handle(stream) == handle


def test_no_stream() -> None:
    with pytest.raises(UsageError, match="Found a str as a stream; expected a CUDA stream"):
        stream_handle("default")


# ---- arrays of other libraries ----


class OnDevice:
    """A numpy array that says it is in device memory."""

    def __init__(self, array: Any, **changes: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
        } | changes


class Dlpack:
    """A numpy array whose DLPack device is CUDA."""

    def __init__(self, array: Any, device_type: int = 2) -> None:
        self.array, self.device_type = array, device_type

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_type, 0

    def __dlpack__(self) -> Any:
        return self.array.__dlpack__()


def test_a_cuda_array_is_looked_at() -> None:
    array = np.zeros((3, 8), np.float32)
    view = array_view(OnDevice(array, strides=(64, 4), stream=2, data=(array.ctypes.data, True)), "x")
    assert (view.pointer, view.shape, view.strides) == (array.ctypes.data, (3, 8), (64, 4))
    assert not view.writable
    assert view.stream == 2
    empty = array_view(OnDevice(np.zeros(0, np.int16), data=(None, False)), "x")
    assert (empty.pointer, empty.strides, empty.stream) == (0, None, None)


def test_a_dlpack_array_is_looked_at() -> None:
    array = np.arange(24, dtype=np.int16).reshape(4, 6)
    for given in (array, array[:, 1:], array[::2]):
        view = array_view(Dlpack(given), "x")
        assert (view.pointer, view.shape, view.dtype) == (given.ctypes.data, given.shape, np.int16)
        assert view.strides in (given.strides, None)


@pytest.mark.parametrize("array", [[1.0, 2.0], np.zeros(3), Dlpack(np.zeros(3), device_type=1)])
def test_host_memory_is_refused(array: Any) -> None:
    with pytest.raises(KernelError, match="samples is a .* in host memory; expected device memory"):
        array_view(array, "samples")


def test_a_type_that_no_kernel_takes() -> None:
    with pytest.raises(KernelError, match="DLPack type"):
        array_view(Dlpack(np.zeros(3, np.complex64)), "x")


def test_backends_have_what_the_protocol_says() -> None:
    for backend in (CudaBindings, PyCuda):
        missing = {name for name in vars(device.Driver) if not name.startswith("_")} - set(vars(backend))
        assert not missing - {"name"}
