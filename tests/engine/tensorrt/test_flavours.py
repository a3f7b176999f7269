"""Finding TensorRT: installed, missing, or JetPack's own hidden by a virtual environment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trt_double import double

from edgemm.engine.gpu import Gpu, find_gpu, gpu_of
from edgemm.engine.tensorrt import flavours
from edgemm.errors import EngineError, MissingExtraError, UsageError

HERE = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flavours, "SYSTEM_FOLDERS", ())
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    yield
    sys.modules.pop("tensorrt", None)


def system(folder: Path, python: str, text: str = "__version__ = '10.3.0'\nclass Runtime: ...\n") -> Path:
    place = folder / python / "dist-packages" / "tensorrt"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(text)
    return place.parent


def test_what_is_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", double("10.13"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", double("rtx"))
    found = flavours.installed()
    assert [(flavour.name, flavour.version) for flavour in found] == [
        ("tensorrt", "10.13.3"),
        ("tensorrt-rtx", "1.7.1"),
    ]
    assert [flavour.builds_without_gpu for flavour in found] == [False, True]
    assert [flavour.title for flavour in found] == ["TensorRT 10.13.3", "TensorRT for RTX 1.7.1"]
    assert flavours.get("tensorrt") == found[0]


def test_nothing_there() -> None:
    assert flavours.installed() == ()
    with pytest.raises(MissingExtraError, match=r'pip install "edgemm\[rtx\]"'):
        flavours.get("tensorrt-rtx")
    with pytest.raises(MissingExtraError, match=r'pip install "edgemm\[tensorrt\]"'):
        flavours.get("tensorrt")
    with pytest.raises(UsageError, match='engine name "cuda"; expected one of: tensorrt, tensorrt-rtx'):
        flavours.get("cuda")


def test_a_stub_of_that_name_is_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", types.ModuleType("tensorrt_rtx"))
    assert flavours.installed() == ()


def test_jetpacks_own_is_loaded_from_a_venv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(flavours, "SYSTEM_FOLDERS", (system(tmp_path, "python2.7"), system(tmp_path, HERE)))
    assert flavours.get("tensorrt").version == "10.3.0"
    assert str(tmp_path) not in sys.path


def test_jetpacks_own_for_another_python_is_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(flavours, "SYSTEM_FOLDERS", (system(tmp_path, "python3.1"),))
    with pytest.raises(EngineError, match=r"python3.1.*this Python 3\.\d+ cannot load it.*--system-site-packages"):
        flavours.get("tensorrt")
    assert flavours.hidden_hint([]) is None


def test_jetpacks_own_that_does_not_load_is_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder = system(tmp_path, HERE, "raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.setattr(flavours, "SYSTEM_FOLDERS", (folder,))
    with pytest.raises(EngineError, match="--system-site-packages"):
        flavours.get("tensorrt")


def test_names_are_probed() -> None:
    flavour = flavours.Flavour("tensorrt", "10.3.0", double("10.3"))
    assert "FP16" in flavour.members("BuilderFlag")
    assert flavour.members("ComputeCapability") == ()
    assert flavour.get("IRuntimeConfig") is None
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0 has no ComputeCapability SM86; it has: none"):
        flavour.member("ComputeCapability", "SM86")


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from host_driver import HostDriver

    driver = HostDriver(device="Thor", arch=110, integrated=True)
    assert gpu_of(driver.info(0)) == Gpu("Thor", "11.0", integrated=True, memory_bytes=8 << 30)
    monkeypatch.setattr("edgemm.engine.gpu.open_device", lambda index: driver.open())
    assert find_gpu() == Gpu("Thor", "11.0", integrated=True, memory_bytes=8 << 30)

    def none(index: int) -> None:
        raise MissingExtraError("CUDA", "kernels", "cuda.bindings")

    monkeypatch.setattr("edgemm.engine.gpu.open_device", none)
    assert find_gpu() is None
