"""The CUDA layer on a real device: memory, streams, events, graphs, and arrays of other libraries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgemm.device import Device, array_view, open_device


@pytest.fixture
def device() -> Iterator[Device]:
    with open_device() as opened:
        yield opened


def test_the_driver_names_the_device(device: Device) -> None:
    assert device.info.name
    assert device.arch >= 72
    assert device.info.memory_bytes > 1 << 30


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_what_goes_up_comes_down(device: Device, size: int) -> None:
    array = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    np.testing.assert_array_equal(device.upload(array).download(), array)


def test_pinned_memory_is_one_array_on_both_sides(device: Device) -> None:
    stream = device.stream()
    pinned = device.pinned((1024,), np.float32)
    pinned.host[:] = np.arange(1024)
    target = device.empty((1024,), np.float32)
    device.write(target.pointer, pinned.host, stream)
    back = device.pinned((1024,), np.float32)
    device.read(target.pointer, back.host, stream)
    stream.synchronize()
    np.testing.assert_array_equal(back.host, pinned.host)


def test_events_order_streams_and_measure_time(device: Device) -> None:
    first, second = device.stream(), device.stream()
    buffer = device.empty((1 << 26,), np.uint8)
    start = device.event().record(first)
    device.fill(buffer.pointer, 7, 1 << 26, first)
    done = device.event().record(first)
    second.wait(done)
    device.fill(buffer.pointer, 9, 1 << 25, second)
    second.synchronize()
    assert done.milliseconds_since(start) > 0
    got = buffer.download()
    assert (got[0], got[-1]) == (9, 7)


def test_a_graph_replays_what_was_recorded(device: Device) -> None:
    if device.backend == "pycuda":
        pytest.skip("PyCUDA has no stream capture: install cuda-bindings")
    stream = device.stream()
    source, target = device.pinned((16,), np.int32), device.pinned((16,), np.int32)
    middle = device.empty((16,), np.int32)
    with device.capture(stream) as graph:
        device.write(middle.pointer, source.host, stream)
        device.read(middle.pointer, target.host, stream)
    for value in (1, 2, 3):
        source.host[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert target.host.tolist() == [value] * 16


def test_a_gpuarray_of_pycuda_goes_in_without_a_copy() -> None:
    pytest.importorskip("pycuda.driver", reason="needs PyCUDA: pip install pycuda, with a CUDA toolkit")
    from pycuda import gpuarray

    with open_device(backend="pycuda") as device:
        array = gpuarray.to_gpu(np.arange(6, dtype=np.float32).reshape(2, 3))
        view = array_view(array, "it", device=device)
        assert view.pointer == int(array.gpudata)
        assert (view.shape, view.dtype) == ((2, 3), np.float32)


def test_a_tensor_of_torch_goes_in_through_dlpack(device: Device) -> None:
    torch = pytest.importorskip("torch", reason="needs torch with CUDA")
    if not torch.cuda.is_available():
        pytest.skip("needs torch with CUDA; this one has none")
    tensor = torch.arange(6, device="cuda", dtype=torch.float32)
    assert array_view(tensor, "it", device=device).pointer == tensor.data_ptr()
