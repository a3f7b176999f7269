"""The TensorRT runtime against the strict double of every version, on a host that plays the GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trt_graphs
from host_driver import HostArray, HostDriver
from trt_double import VERSIONS, Double, double

from edgemm.engine import targets
from edgemm.engine.gpu import Gpu
from edgemm.engine.tensorrt.build import build_plan
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plan import BuildOptions, Plan, Profile
from edgemm.engine.tensorrt.run.engine import TensorRTEngine
from edgemm.engine.tensorrt.run.loaded import LoadedPlan
from edgemm.errors import EngineError
from edgemm.types import StatePair


class Bench:
    """A double, a host driver, and plans built with the one for the other."""

    def __init__(self, version: str, **driver: object) -> None:
        self.module: Double = double(version)
        self.flavour = Flavour("tensorrt-rtx" if version == "rtx" else "tensorrt", self.module.__version__, self.module)
        rtx = version == "rtx"
        self.driver = HostDriver(**{"device": "RTX 3090" if rtx else "Orin", "arch": 86 if rtx else 87} | driver)  # type: ignore[arg-type]
        self.module._driver = self.driver
        self.target = targets.get("rtx-sm86" if rtx else "orin-nano")

    def plan(self, model: bytes, *profiles: Profile, **options: object) -> Plan:
        return build_plan(
            model,
            BuildOptions(profiles=profiles, **options),  # type: ignore[arg-type]
            self.target,
            flavour=self.flavour,
            graph="a graph",
            precision="fp32",
            gpu=Gpu("Orin", "8.7"),
        )

    def engine(self, plan: Plan, *states: StatePair, **more: object) -> TensorRTEngine:
        return TensorRTEngine(plan, states, flavour=self.flavour, open_device=self.driver.open, **more)  # type: ignore[arg-type]


@pytest.fixture(params=list(VERSIONS))
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.fixture
def rtx() -> Bench:
    return Bench("rtx")


def expected(model: bytes, **feeds: np.ndarray) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def test_a_step_gives_what_the_graph_computes(bench: Bench) -> None:
    model = trt_graphs.conv()
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with bench.engine(bench.plan(model, trt_graphs.CONV_PROFILE)) as engine:
        for _ in range(4):  # enqueued, captured, replayed
            y = engine.run({"x": x})["y"]
            np.testing.assert_allclose(y, expected(model, x=x), rtol=1e-5, atol=1e-6)
        assert [spec.name for spec in engine.inputs] == ["x"]
        assert [spec.name for spec in engine.outputs] == ["y"]
        assert engine.name == bench.flavour.name
        assert bench.flavour.version in engine.device
        assert engine.notes == []
    assert bench.driver.graph_launches == 3


def test_shapes_may_change_from_step_to_step(bench: Bench) -> None:
    model = trt_graphs.conv()
    with bench.engine(bench.plan(model, trt_graphs.CONV_PROFILE)) as engine:
        for batch in (1, 4, 2, 4, 1):
            x = np.full((batch, 3, 8, 8), batch, np.float32)
            np.testing.assert_allclose(engine.run({"x": x})["y"], expected(model, x=x), rtol=1e-5)


def test_a_state_stays_on_the_device_and_reset_clears_it(bench: Bench) -> None:
    with bench.engine(bench.plan(trt_graphs.accumulator()), StatePair("s", "s_out")) as engine:
        assert [spec.name for spec in engine.inputs] == ["x"]
        assert [spec.name for spec in engine.outputs] == ["y"]
        one = {"x": np.ones(2, np.float32)}
        seen = [float(engine.run(one)["y"][0]) for _ in range(7)]
        assert seen == [1, 2, 3, 4, 5, 6, 7]
        engine.reset()
        assert float(engine.run(one)["y"][0]) == 1
    reads = {addresses["s"] for _, addresses in bench.module._executions}
    writes = {addresses["s_out"] for _, addresses in bench.module._executions}
    assert reads == writes
    assert len(reads) == 2, "the state's two buffers change places"
    assert {size for _, size in bench.driver.copies} == {8}, "only x and y are copied, 2 floats each"
    assert bench.driver.graph_launches > 0


def test_a_state_may_grow(rtx: Bench) -> None:
    profile = {"s": ((0,), (8,), (64,))}
    with rtx.engine(rtx.plan(trt_graphs.growing(), profile), StatePair("s", "s_out")) as engine:
        sums = [float(engine.run({"x": np.full(1, step, np.float32)})["y"][0]) for step in range(1, 20)]
        assert sums == [step * (step + 1) / 2 for step in range(1, 20)]


def test_two_engines_share_a_plan_but_no_state(bench: Bench) -> None:
    loaded = LoadedPlan(bench.plan(trt_graphs.accumulator()), flavour=bench.flavour, open_device=bench.driver.open)
    one = {"x": np.ones(2, np.float32)}
    with loaded, TensorRTEngine(loaded, [StatePair("s", "s_out")]) as first, first.sibling() as second:
        first.run(one)
        first.run(one)
        assert float(second.run(one)["y"][0]) == 1
        assert float(first.run(one)["y"][0]) == 3
        assert first.stream.handle != second.stream.handle
    assert not bench.driver.memory


def test_an_output_of_unknown_size_gets_its_memory_when_it_is_known(bench: Bench) -> None:
    with bench.engine(bench.plan(trt_graphs.nonzero())) as engine:
        for values, places in (([0, 1, 0, 1], [[1, 3]]), ([1, 1, 1, 1], [[0, 1, 2, 3]]), ([0, 0, 0, 0], [[]])):
            y = engine.run({"x": np.array(values, np.float32)})["y"]
            assert y.tolist() == places
        assert bench.driver.graph_launches == 0


def test_no_memory_for_an_output_is_an_error_with_its_cause(rtx: Bench) -> None:
    plan = rtx.plan(trt_graphs.nonzero())
    with rtx.engine(plan) as engine:
        engine.run({"x": np.zeros(4, np.float32)})
        rtx.driver.limit_bytes = 0
        with pytest.raises(EngineError, match="no memory for an output: cuMemAlloc failed"):
            engine.run({"x": np.ones(4, np.float32)})


def test_an_integrated_gpu_copies_nothing() -> None:
    bench = Bench("10.3", integrated=True)
    model = trt_graphs.conv(1)
    x = np.ones((1, 3, 8, 8), np.float32)
    with bench.engine(bench.plan(model)) as engine:
        np.testing.assert_allclose(engine.run({"x": x})["y"], expected(model, x=x), rtol=1e-5)
    assert bench.driver.copies == []


def test_feeds_on_the_device_are_used_where_they_are(bench: Bench) -> None:
    model = trt_graphs.conv(1)
    x = np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)
    with bench.engine(bench.plan(model)) as engine:
        y = engine.run_on_device({"x": HostArray(x)})["y"]
        assert bench.module._executions[-1][1]["x"] == x.ctypes.data
        interface = y.__cuda_array_interface__
        assert interface["shape"] == (1, 4, 8, 8)
        assert interface["data"][0] == bench.module._executions[-1][1]["y"]
        assert bench.driver.copies == []
        # and a step on the host's arrays after it is not confused by the address
        np.testing.assert_allclose(engine.run({"x": x + 1})["y"], expected(model, x=x + 1), rtol=1e-4, atol=1e-5)
        stream = engine.stream.handle
        engine.run_on_device({"x": HostArray(x)}, stream=stream)
        assert bench.module._executions[-1][0] == stream


def test_a_feed_on_the_device_must_fit(rtx: Bench) -> None:
    x = np.zeros((1, 3, 8, 8), np.float32)
    with rtx.engine(rtx.plan(trt_graphs.conv(1))) as engine:
        with pytest.raises(EngineError, match='"x" was not fed'):
            engine.run_on_device({})
        with pytest.raises(EngineError, match="not contiguous"):
            engine.run_on_device({"x": HostArray(x.transpose(0, 1, 3, 2))})
        with pytest.raises(EngineError, match=r"float64\[1, 3, 8, 8\]; expected x: float32"):
            engine.run_on_device({"x": HostArray(x.astype(np.float64))})


def test_wrong_feeds_say_what_was_expected(rtx: Bench) -> None:
    with rtx.engine(rtx.plan(trt_graphs.conv(), trt_graphs.CONV_PROFILE)) as engine:
        with pytest.raises(EngineError, match='"x" was not fed; expected x: float32'):
            engine.run({})
        with pytest.raises(EngineError, match=r"float32\[3, 8, 8\]; expected"):
            engine.run({"x": np.zeros((3, 8, 8), np.float32)})
        with pytest.raises(EngineError, match=r"x \[9, 3, 8, 8\] not in \[1, 3, 8, 8\]..\[4, 3, 8, 8\]"):
            engine.run({"x": np.zeros((9, 3, 8, 8), np.float32)})


def test_the_profile_follows_the_shape(bench: Bench) -> None:
    small = {"x": ((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))}
    large = {"x": ((2, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))}
    model = trt_graphs.conv()
    with bench.engine(bench.plan(model, small, large)) as engine:
        for batch in (1, 8, 1):
            x = np.ones((batch, 3, 8, 8), np.float32)
            assert engine.run({"x": x})["y"].shape == (batch, 4, 8, 8)


def test_where_a_graph_cannot_be_captured_steps_go_on_and_a_note_says_so() -> None:
    bench = Bench("10.13", capture_fails=True)
    x = np.ones((1, 3, 8, 8), np.float32)
    with bench.engine(bench.plan(trt_graphs.conv(1))) as engine:
        for _ in range(4):
            engine.run({"x": x})
        assert engine.notes == [
            "CUDA graphs are not used: cuStreamBeginCapture failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED."
        ]
    assert bench.driver.graph_launches == 0


def test_rtx_is_asked_whether_it_can_be_captured(rtx: Bench) -> None:
    rtx.module._uncapturable = True
    with rtx.engine(rtx.plan(trt_graphs.conv(1))) as engine:
        for _ in range(3):
            engine.run({"x": np.ones((1, 3, 8, 8), np.float32)})
        assert "cannot be captured" in engine.notes[0]


def test_old_graphs_give_way_to_new_shapes(rtx: Bench) -> None:
    profile = {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (40, 3, 8, 8))}
    with rtx.engine(rtx.plan(trt_graphs.conv(), profile)) as engine:
        for batch in range(40, 0, -1):
            x = np.ones((batch, 3, 8, 8), np.float32)
            for _ in range(2):
                assert engine.run({"x": x})["y"].shape[0] == batch
        assert 0 < len(rtx.driver._graphs) <= 16
    assert not rtx.driver._graphs


def test_layers_are_timed_and_inspected(bench: Bench) -> None:
    with bench.engine(bench.plan(trt_graphs.conv(1)), profile_layers=True) as engine:
        for _ in range(3):
            engine.run({"x": np.ones((1, 3, 8, 8), np.float32)})
        times = {time.name: time for time in engine.layer_times()}
        assert times["conv"].total_ns == 750_000
        assert times["conv"].calls == 3
        assert times["conv"].op == "Conv"
        assert [layer["Name"] for layer in engine.layers()] == ["conv", "relu"]
    assert bench.driver.graph_launches == 0, "a replayed graph reports no layers"


def test_layer_times_are_empty_unless_asked_for(rtx: Bench) -> None:
    with rtx.engine(rtx.plan(trt_graphs.conv(1))) as engine:
        engine.run({"x": np.ones((1, 3, 8, 8), np.float32)})
        assert engine.layer_times() == []


def test_a_plan_of_another_device_or_version_never_reaches_tensorrt(bench: Bench) -> None:
    plan = bench.plan(trt_graphs.conv(1))
    bench.module.Runtime.deserialize_cuda_engine = lambda self, data: pytest.fail("TensorRT was handed a foreign plan")
    for change in ({"version": "9.9.9"}, {"compute_capability": "7.5"}, {"plugins": "abc"}):
        with (
            pytest.raises(EngineError, match="Compile it again here"),
            bench.engine(replace(plan, key=replace(plan.key, **change))),
        ):
            pass
    assert not bench.driver.memory


def test_a_plan_that_tensorrt_cannot_read_is_an_error(bench: Bench) -> None:
    plan = replace(bench.plan(trt_graphs.conv(1)), data=b"nonsense")
    with (
        pytest.raises(EngineError, match='cannot load the plan: TensorRT says "the double cannot read this plan"'),
        bench.engine(plan),
    ):
        pass


def test_a_step_that_tensorrt_refuses_is_an_error_with_its_words(bench: Bench) -> None:
    with bench.engine(bench.plan(trt_graphs.conv(1))) as engine:
        bench.module._fail_execution = True
        with pytest.raises(EngineError, match='could not start the step: TensorRT says "the double was told to fail"'):
            engine.run({"x": np.ones((1, 3, 8, 8), np.float32)})


def test_refit_takes_new_weights(bench: Bench) -> None:
    plan = bench.plan(trt_graphs.conv(1), refit=True)
    with LoadedPlan(plan, flavour=bench.flavour, open_device=bench.driver.open) as loaded:
        loaded.refit(trt_graphs.conv(1, seed=5))
        assert loaded.engine._refitted
        with pytest.raises(EngineError, match="cannot refit the plan"):
            loaded.refit(b"!")


def test_a_stripped_plan_is_filled_when_it_is_loaded(bench: Bench) -> None:
    model = trt_graphs.conv(1)
    plan = bench.plan(model, strip_weights=True)
    with LoadedPlan(plan, flavour=bench.flavour, open_device=bench.driver.open, weights=model) as loaded:
        assert loaded.engine._refitted


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (StatePair("s", "nothing"), 'no state pair "nothing" -> "s"'),
        (StatePair("y", "s_out"), 'no state pair "s_out" -> "y"'),
    ],
)
def test_a_wrong_state_pair_is_an_error(rtx: Bench, pair: StatePair, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        rtx.engine(rtx.plan(trt_graphs.accumulator()), pair)


def test_a_state_must_keep_its_type(rtx: Bench) -> None:
    plan = rtx.plan(trt_graphs.accumulator())
    io = tuple(replace(tensor, dtype="float16") if tensor.name == "s" else tensor for tensor in plan.io)
    with pytest.raises(EngineError, match='"s" is float16 but is fed by "s_out", float32'):
        rtx.engine(replace(plan, io=io), StatePair("s", "s_out"))


def test_outside_its_with_block_the_engine_says_so(rtx: Bench) -> None:
    engine = rtx.engine(rtx.plan(trt_graphs.conv(1)))
    with pytest.raises(EngineError, match='Use it inside its "with" block'):
        engine.run({"x": np.ones((1, 3, 8, 8), np.float32)})
    loaded = LoadedPlan(rtx.plan(trt_graphs.conv(1)))
    for name in ("device", "flavour", "engine"):
        with pytest.raises(EngineError, match="not loaded"):
            getattr(loaded, name)


def test_kernels_compiled_on_the_device_are_kept(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only TensorRT for RTX compiles on the device; the others have no such cache and are not asked for one."""
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path))
    plan = bench.plan(trt_graphs.conv(1))
    x = {"x": np.ones((1, 3, 8, 8), np.float32)}
    for damage in (None, None, b"cut", None, 0o777, None):
        with bench.engine(plan) as engine:
            engine.run(x)
        for file in (tmp_path / "jit").glob("*"):
            if isinstance(damage, bytes):
                file.write_bytes(damage)
            file.parent.chmod(damage if isinstance(damage, int) else 0o700)
    # compiled, taken, taken and then damaged: compiled, taken and then another's: compiled
    expected = [False, True, True, False, True, False]
    assert bench.module._jit_hits == (expected if bench.flavour.name == "tensorrt-rtx" else [])


def test_kernels_that_cannot_be_kept_are_a_note(rtx: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "file"))
    loaded = LoadedPlan(rtx.plan(trt_graphs.conv(1)), flavour=rtx.flavour, open_device=rtx.driver.open)
    with loaded, TensorRTEngine(loaded):
        pass
    assert "were not kept" in loaded.notes[0]


def test_shapes_that_do_not_go_together(bench: Bench) -> None:
    with bench.engine(bench.plan(trt_graphs.conv(1))) as engine:
        bench.module._shapes_clash = True
        with pytest.raises(EngineError, match='do not go together: TensorRT says "the double finds'):
            engine.run({"x": np.ones((1, 3, 8, 8), np.float32)})


def test_a_plan_for_the_dla_runs_on_its_core() -> None:
    bench = Bench("10.3")
    bench.module._dla_cores = 2
    plan = bench.plan(trt_graphs.conv(1), dla_core=1)
    with LoadedPlan(plan, flavour=bench.flavour, open_device=bench.driver.open) as loaded:
        assert loaded._runtime.DLA_core == 1
    bench.module._dla_cores = 1
    with pytest.raises(EngineError, match="uses DLA core 1, this device has 1 DLA cores"), bench.engine(plan):
        pass


def test_plugins_are_registered_before_their_plan_is_loaded(bench: Bench) -> None:
    class Known:
        digest = "d1g35t"
        ahead_of_time = False
        times = 0

        def register(self, flavour: Flavour) -> None:
            self.times += 1

    plan = bench.plan(trt_graphs.conv(1))
    plan = replace(plan, key=replace(plan.key, plugins="d1g35t"))
    plugins = Known()
    with bench.engine(plan, plugins=plugins):
        assert plugins.times == 1
    with pytest.raises(EngineError, match="plugins in version d1g35t, here is none"), bench.engine(plan):
        pass


def test_a_plan_that_cannot_be_refitted_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.module.ICudaEngine, "refittable", False)
    with (
        LoadedPlan(bench.plan(trt_graphs.conv(1)), flavour=bench.flavour, open_device=bench.driver.open) as loaded,
        pytest.raises(EngineError, match=r"cannot be refitted. Compile it again with refit=True"),
    ):
        loaded.refit(trt_graphs.conv(1))


def test_a_context_that_cannot_be_made_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.module.ICudaEngine, "create_execution_context", lambda self, config=None: None)
    with pytest.raises(EngineError, match="cannot make an execution context"):
        bench.engine(bench.plan(trt_graphs.conv(1))).__enter__()
    assert not bench.driver.memory


def test_a_runtime_that_cannot_start_says_why(bench: Bench) -> None:
    plan = bench.plan(trt_graphs.conv(1))
    bench.module._cuda_fails = "CUDA initialization failure with error: 35"
    with pytest.raises(EngineError, match="cannot start: the CUDA driver cannot be used here"):
        bench.engine(plan).__enter__()


def test_another_thread_is_told(rtx: Bench) -> None:
    with rtx.engine(rtx.plan(trt_graphs.conv(1))) as engine, ThreadPoolExecutor(1) as pool:
        step = pool.submit(engine.run, {"x": np.ones((1, 3, 8, 8), np.float32)})
        with pytest.raises(EngineError, match="was entered in another thread"):
            step.result()


def test_bfloat16_comes_as_ml_dtypes(rtx: Bench) -> None:
    from edgemm.engine.tensorrt.run.memory import numpy_dtype

    assert numpy_dtype("bfloat16").itemsize == 2
    with pytest.raises(EngineError, match="has the type fp77"):
        numpy_dtype("fp77")
