"""DLPack capsules, taken by numpy (as memory of the host) and by edgemm's own reader (as memory of a device)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from edgemm.device import array_view, dlpack
from edgemm.engine.tensorrt.run.memory import DeviceTensor


class OnTheHost:
    """Gives an array's memory as DLPack of the CPU, which numpy takes."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    def __dlpack__(self, **asked: Any) -> Any:
        return dlpack.capsule(
            self.array.ctypes.data, self.array.shape, self.array.dtype, self, self.__dlpack_device__()
        )


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (), (0, 3)])
def test_numpy_reads_the_same_numbers_without_a_copy(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
    taken = np.from_dlpack(OnTheHost(array))
    np.testing.assert_array_equal(taken, array)
    assert taken.dtype == array.dtype
    assert not array.size or np.shares_memory(taken, array)


def test_the_owner_lives_until_the_consumer_lets_go() -> None:
    given = OnTheHost(np.ones(3, np.float32))
    owner = weakref.ref(given)
    before = len(dlpack._given)
    taken = np.from_dlpack(given)
    del given
    gc.collect()
    assert owner() is not None
    assert taken.sum() == 3
    del taken
    gc.collect()
    assert owner() is None
    assert len(dlpack._given) == before


def test_a_capsule_that_nobody_takes_frees_its_tensor() -> None:
    before = len(dlpack._given)
    capsule = OnTheHost(np.ones(3, np.float32)).__dlpack__()
    assert len(dlpack._given) == before + 1
    del capsule
    gc.collect()
    assert len(dlpack._given) == before


class OnlyDlpack:
    """A device tensor without `__cuda_array_interface__`."""

    def __init__(self, tensor: DeviceTensor) -> None:
        self.__dlpack__ = tensor.__dlpack__
        self.__dlpack_device__ = tensor.__dlpack_device__


def test_a_tensor_of_the_device_goes_out_and_in() -> None:
    tensor = DeviceTensor(0x7F00_0000, (2, 5), np.dtype(np.float16), device=1)
    assert tensor.__dlpack_device__() == (dlpack.CUDA, 1)
    seen = array_view(OnlyDlpack(tensor), "the output")
    assert (seen.pointer, seen.shape, seen.dtype) == (0x7F00_0000, (2, 5), np.dtype(np.float16))


def test_types() -> None:
    capsule = dlpack.capsule(0x7F00_0000, (1,), np.dtype(ml_dtypes.bfloat16), None)
    assert "dltensor" in repr(capsule)
    with pytest.raises(BufferError, match="DLPack has no number for the type float8_e4m3fn"):
        dlpack.capsule(0x7F00_0000, (1,), np.dtype(ml_dtypes.float8_e4m3fn), None)
