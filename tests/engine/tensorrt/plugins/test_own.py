"""The plugins against the double of every TensorRT version, their kernels under the CPU emulator."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trt_double import VERSIONS, Double, double

from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plugins import own
from edgemm.engine.tensorrt.plugins.own import NAMESPACE, OPERATORS, VERSION, OwnPlugins, field_text
from edgemm.engine.tensorrt.rtx_library import empty_library
from edgemm.errors import EngineError, KernelError
from edgemm.kernels.attention import AttentionOptions, attention_reference
from edgemm.kernels.launch import EmulatorRunner, View
from edgemm.kernels.log_mel import frame_count, log_mel_reference, mfcc_reference
from edgemm.options import LogMelOptions, MfccOptions


class HostRunner(EmulatorRunner):
    """The emulator, which also takes addresses of host memory that say they are on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.arrays: dict[int, np.ndarray] = {}

    def view(self, array: Any, what: str) -> View:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is not None:
            known = self.arrays[interface["data"][0]]
            array = known.view(np.dtype(interface["typestr"])).reshape(interface["shape"])
        return super().view(array, what)


@dataclass
class Expressions:
    """TensorRT's IExprBuilder on plain numbers."""

    trt: Double

    def constant(self, value: int) -> int:
        return value

    def operation(self, kind: Any, first: int, second: int) -> int:
        names = {"SUM": operator.add, "MAX": max, "FLOOR_DIV": operator.floordiv}
        return int(names[kind.name](first, second))


@pytest.fixture(params=list(VERSIONS))
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flavour]:
    monkeypatch.setattr(own, "provide_library", lambda: None)
    module = double(request.param)
    name = "tensorrt-rtx" if request.param == "rtx" else "tensorrt"
    return Flavour(name, module.__version__, module)  # type: ignore[arg-type,return-value]


def fields(module: Double, **values: Any) -> Any:
    kinds = module.PluginFieldType
    made = []
    for name, value in values.items():
        if isinstance(value, str):
            made.append(module.PluginField(name, np.frombuffer(value.encode(), np.int8), kinds.CHAR))
        elif isinstance(value, float):
            made.append(module.PluginField(name, np.array([value], np.float32), kinds.FLOAT32))
        else:
            made.append(module.PluginField(name, np.array([value], np.int32), kinds.INT32))
    return module.PluginFieldCollection(made)


def attention_fields(module: Double, options: AttentionOptions) -> Any:
    before, after = options.window_limits
    return fields(
        module,
        head_dim=options.head_dim,
        dtype=10 if options.dtype == "float16" else 16,
        scale=options.softmax_scale,
        window_before=before,
        window_after=after,
        align_end=int(options.queries_at == "end"),
    )


def make(flavour: Flavour, op: str, given: Any, runner: HostRunner | None = None) -> Any:
    plugins = OwnPlugins(lambda: runner or HostRunner())
    plugins.register(flavour)
    creator = flavour.module.get_plugin_registry().get_creator(op, VERSION, NAMESPACE)
    return creator.create_plugin("node", given, None)


class Described:
    """A tensor description as TensorRT hands it to a plugin."""

    def __init__(self, module: Double, kind: str, dims: tuple[int, ...]) -> None:
        self.dims, self.type, self.format = dims, module.DataType[kind], module.TensorFormat.LINEAR
        self.desc = self


def enqueue(plugin: Any, module: Double, runner: HostRunner, kinds: list[str], arrays: list[np.ndarray]) -> None:
    """Run the plugin on arrays: the last one is the output."""
    described = [Described(module, kind, array.shape) for kind, array in zip(kinds, arrays, strict=True)]
    addresses = [array.ctypes.data for array in arrays]
    runner.arrays = dict(zip(addresses, arrays, strict=True))
    plugin.enqueue(described[:-1], described[-1:], addresses[:-1], addresses[-1:], 0, 0)


def test_every_operator_is_registered_once(flavour: Flavour) -> None:
    plugins = OwnPlugins()
    plugins.register(flavour)
    OwnPlugins().register(flavour)
    assert set(flavour.module._creators) == {(op, VERSION, NAMESPACE) for op in OPERATORS}


def test_the_digest_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = OwnPlugins().digest
    assert len(before) == 64
    (tmp_path / "other.cu").write_text("")
    monkeypatch.setattr(own, "source_dir", lambda: tmp_path)
    assert OwnPlugins().digest != before


@pytest.mark.parametrize("options", [LogMelOptions(), LogMelOptions(edges="reflect", fft_size=512, n_mels=40)])
@pytest.mark.parametrize("samples", [0, 100, 399, 400, 401, 16000])
def test_the_output_shape_is_the_kernels(flavour: Flavour, options: LogMelOptions, samples: int) -> None:
    module = flavour.module
    plugin = make(flavour, "LogMel", fields(module, options=field_text(options)))
    (shape,) = plugin.get_output_shapes([module.DimsExprs([3, samples])], [], Expressions(module))
    frames = frame_count(samples, options)
    # A plugin that pads takes an empty signal for the padding alone; whole graphs never feed one.
    if samples:
        assert list(shape) == [3, frames, options.n_mels]


def test_types_and_formats(flavour: Flavour) -> None:
    module = flavour.module
    plugin = make(flavour, "LogMel", fields(module, options=field_text(LogMelOptions())))
    both = [Described(module, "FLOAT", (1, 400)), Described(module, "FLOAT", (1, 1, 80))]
    assert plugin.supports_format_combination(0, both, 1)
    assert not plugin.supports_format_combination(1, [both[0], Described(module, "HALF", (1, 1, 80))], 1)
    both[1].format = module.TensorFormat.CHW2
    assert not plugin.supports_format_combination(1, both, 1)
    assert plugin.get_output_data_types([module.DataType.FLOAT]) == [module.DataType.FLOAT]
    attention = make(flavour, "FusedAttention", attention_fields(module, AttentionOptions(64, dtype="bfloat16")))
    four = [Described(module, "BF16", (1, 1, 1, 64)) for _ in range(4)]
    assert all(attention.supports_format_combination(position, four, 3) for position in range(4))
    assert not attention.supports_format_combination(0, [Described(module, "HALF", (1, 1, 1, 64))] * 4, 3)


def test_a_plugin_survives_serialisation(flavour: Flavour) -> None:
    module = flavour.module
    options = MfccOptions(deltas=1)
    plugin = make(flavour, "MFCC", fields(module, options=field_text(options)))
    again = make(flavour, "MFCC", plugin.get_fields_to_serialize())
    assert again.operator._options == options
    assert again.operator.features == 26
    attention = make(flavour, "FusedAttention", attention_fields(module, AttentionOptions(80, causal=True)))
    again = make(flavour, "FusedAttention", attention.get_fields_to_serialize())
    assert again.operator._options.window_limits == attention.operator._options.window_limits
    clone = again.attach_to_context(None)
    assert clone is not again
    assert clone.operator._options == again.operator._options
    assert again.get_capability_interface(None) is again
    assert again.configure_plugin([], []) is again.on_shape_change([], []) is again.set_tactic(0) is None


def test_attributes_that_do_not_fit_are_an_error(flavour: Flavour) -> None:
    module = flavour.module
    with pytest.raises(EngineError, match="A LogMel node has attributes that this edgemm does not know"):
        make(flavour, "LogMel", fields(module, options='{"bands": 3}'))
    with pytest.raises(EngineError, match="takes float16 and bfloat16"):
        make(
            flavour,
            "FusedAttention",
            fields(module, head_dim=32, dtype=1, scale=1.0, window_before=0, window_after=0, align_end=1),
        )
    with pytest.raises(EngineError, match="head dimension 7"):
        make(
            flavour,
            "FusedAttention",
            fields(module, head_dim=7, dtype=10, scale=1.0, window_before=0, window_after=0, align_end=1),
        )


def test_a_version_without_the_interface_is_told() -> None:
    class Old:
        pass

    with pytest.raises(EngineError, match="has no IPluginV3"):
        OwnPlugins().register(Flavour("tensorrt", "8.5.2", Old()))  # type: ignore[arg-type]


def test_a_name_that_is_taken_is_told(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour.module.IPluginRegistry, "register_creator", lambda *_: False)
    with pytest.raises(EngineError, match='refused the plugin "LogMel"'):
        OwnPlugins().register(flavour)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> Flavour:
    monkeypatch.setattr(own, "provide_library", lambda: None)
    module = double("11.4")
    return Flavour("tensorrt", module.__version__, module)


@pytest.mark.slow
@pytest.mark.parametrize("options", [LogMelOptions(n_mels=40), MfccOptions()])
def test_enqueue_runs_the_front_end_kernel(newest: Flavour, options: LogMelOptions | MfccOptions) -> None:
    runner = HostRunner()
    op = "LogMel" if isinstance(options, LogMelOptions) else "MFCC"
    plugin = make(newest, op, fields(newest.module, options=field_text(options)), runner)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1000)).astype(np.float32)
    reference = log_mel_reference if isinstance(options, LogMelOptions) else mfcc_reference
    expected = np.stack([reference(row, options) for row in samples])  # type: ignore[arg-type]
    out = np.full(expected.shape, np.nan, np.float32)
    enqueue(plugin, newest.module, runner, ["FLOAT", "FLOAT"], [samples, out])
    np.testing.assert_allclose(out, expected, atol=5e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("biased", [False, True])
def test_enqueue_runs_the_attention_kernel(newest: Flavour, biased: bool) -> None:
    runner = HostRunner()
    options = AttentionOptions(32, causal=True)
    op = "FusedAttentionBias" if biased else "FusedAttention"
    plugin = make(newest, op, attention_fields(newest.module, options), runner)
    rng = np.random.default_rng(0)
    q, k, v, bias = (
        rng.standard_normal(shape).astype(np.float16)
        for shape in ((1, 2, 20, 32), (1, 1, 24, 32), (1, 1, 24, 32), (1, 2, 1, 24))
    )
    out = np.full(q.shape, np.nan, np.float16)
    arrays = [q, k, v, bias, out] if biased else [q, k, v, out]
    enqueue(plugin, newest.module, runner, ["HALF"] * len(arrays), arrays)
    expected, _ = attention_reference(q, k, v, options, bias=bias if biased else None)
    np.testing.assert_allclose(out, expected, atol=4e-3, rtol=2e-3)


def test_the_empty_library_is_an_elf_of_the_machine() -> None:
    intel, arm = (empty_library("libtensorrt_rtx.so", "libtensorrt_rtx.so.1", m) for m in ("x86_64", "aarch64"))
    assert intel[:4] == arm[:4] == b"\x7fELF"
    assert (intel[18], arm[18]) == (62, 183)
    with pytest.raises(EngineError, match="Found the machine riscv64"):
        empty_library("a", "b", "riscv64")


def test_the_empty_library_lends_its_name_to_another(tmp_path: Path) -> None:
    """With the C library in the part of TensorRT: under a made-up name its functions are found."""
    import ctypes
    import platform

    name = f"libedgemm_test_{tmp_path.name.replace('-', '_')}.so"
    with pytest.raises(OSError):  # the words are the linker's
        ctypes.CDLL(name)
    file = tmp_path / name
    file.write_bytes(empty_library(name, "libc.so.6", platform.machine()))
    ctypes.CDLL(str(file))
    found = ctypes.CDLL(name)
    found.strlen.restype = ctypes.c_size_t
    assert found.strlen(b"edgemm") == 6


def test_a_library_that_is_not_loaded_cannot_lend_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemm.engine.tensorrt import rtx_library

    monkeypatch.setattr(rtx_library, "UNVERSIONED", "libedgemm_absent.so")
    with pytest.raises(EngineError, match="Put a link of that name"):
        rtx_library.provide_library("libedgemm_absent.so.1")
    monkeypatch.setattr(rtx_library, "UNVERSIONED", "libc.so.6")
    rtx_library.provide_library("whatever")  # it is there


def test_kernels_that_are_compiled_already_are_loaded_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        arch = 87

        def load_module(self, binary: bytes) -> bytes:
            return binary

    def no_compiler(arch: int) -> None:
        raise KernelError("Found no CUDA compiler.")

    monkeypatch.setattr(own, "open_device", Device)
    monkeypatch.setattr("edgemm.kernels.launch.find_compiler", no_compiler)
    runner = OwnPlugins(cubins={"log_mel": b"cubin"}).runner()
    assert runner.prepare("log_mel") == b"cubin"  # type: ignore[attr-defined]
    with pytest.raises(KernelError, match="no CUDA compiler"):
        runner.prepare("attention_d64")  # type: ignore[attr-defined]


def test_each_operator_names_its_kernel() -> None:
    assert own.kernel_source(LogMelOptions()) == own.kernel_source(MfccOptions()) == "log_mel"
    assert own.kernel_source(AttentionOptions(96)) == "attention_d96"
