"""The emulator: what CUDA promises holds, what CUDA forbids is refused with words, what sanitizers can see they see."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgemm.errors import KernelError, UsageError
from edgemm.kernels import emulate
from edgemm.kernels.sources import source_dir

SOURCE = Path(__file__).with_name("emulator_kernels.cu")


class IO(ctypes.Structure):
    _fields_ = (("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("n", ctypes.c_int), ("mode", ctypes.c_int))


@pytest.fixture(scope="module")
def module():
    return emulate.build(SOURCE)


def run(module, kernel, given, out, *, n=0, mode=0, grid=(1,), block=(32,), shared=0, **options):
    given = np.zeros(1, np.int32) if given is None else given
    params = IO(given.ctypes.data, out.ctypes.data, n, mode)
    return emulate.launch(
        module, kernel, params, grid=grid, block=block, shared_bytes=shared, buffers=[given, out], **options
    )


# ---- CUDA's promises -------------------------------------------------------------------------------------------------


def test_builtin_variables_number_threads_and_blocks_x_first(module):
    out = np.zeros(2 * 3 * 2 * 4 * 3 * 2, np.uint32)
    run(module, "builtins", None, out, grid=(2, 3, 2), block=(4, 3, 2))
    assert np.array_equal(out, np.arange(out.size))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("block_order", ["forward", "reversed", "shuffled"])
def test_a_barrier_makes_shared_memory_visible_in_any_order(module, seed, block_order):
    given = np.arange(5 * 96, dtype=np.float32)
    out = np.zeros_like(given)
    counted = run(
        module, "reverse_block", given, out, grid=(5,), block=(96,), shared=96 * 4, seed=seed, block_order=block_order
    )
    assert np.array_equal(out, given.reshape(5, 96)[:, ::-1].ravel())
    assert counted.barriers == 5


def test_shared_memory_starts_as_nan_in_every_block(module):
    out = np.zeros((3, 32), np.float32)
    run(module, "fresh_shared", None, out, shared=32 * 4, grid=(3,))
    assert np.isnan(out).all()


def test_a_copy_under_way_is_nan(module):
    out = np.zeros((32, 8), np.float32)
    run(module, "copy_async", np.ones((32, 8), np.float32), out, mode=1, shared=32 * 32)
    assert np.isnan(out).all()


def test_warp_collectives(module):
    x = np.random.default_rng(1).integers(-99, 99, 64).astype(np.int32)
    out = np.zeros((12, 64), np.int32)
    run(module, "warp_collectives", x, out, block=(64,))
    lane = np.arange(32)
    for warp, got in ((x[:32], out[:, :32]), (x[32:], out[:, 32:])):
        assert (got[0] == warp[5]).all()
        assert (got[1] == warp[lane ^ 3]).all()
        assert (got[2] == warp[np.where(lane >= 2, lane - 2, lane)]).all()
        assert (got[3] == warp[np.where(lane + 7 < 32, lane + 7, lane)]).all()
        assert (got[4] == warp[np.where(lane % 8 + 3 < 8, lane + 3, lane)]).all()
        assert (got[5].view(np.uint32) == sum(1 << int(i) for i in lane if warp[i] > 0)).all()
        assert (got[6] == warp.sum()).all()
        assert (got[7] == warp.min()).all()
        assert (got[8] == warp.max()).all()
        assert (got[9] == int((warp > 90).any()) + 2).all()
        same = [sum(1 << int(j) for j in lane if warp[j] & 3 == warp[i] & 3) for i in lane]
        assert (got[10].view(np.uint32) == same).all()
        assert (got[11] == np.where(lane < 16, warp[1], warp[20])).all()


@pytest.mark.parametrize("low", [-5, 0, 1])
def test_block_votes(module, low):
    x = np.arange(low, low + 64, dtype=np.int32)
    out = np.zeros(64, np.int32)
    run(module, "block_votes", x, out, block=(64,))
    assert (out == (x > 0).sum() * 4 + 2 + int((x > 0).all())).all()


def test_atomics_over_blocks(module):
    out = np.zeros(8, np.int32)
    run(module, "atomics", None, out, grid=(3,), block=(64,), seed=5, block_order="shuffled")
    n = 192
    assert out[:3].tolist() == [n * (n - 1) // 2, n - 1, 1 - n]
    assert out[3:4].view(np.float32)[0] == n / 2
    assert out[4] == -1
    assert out[5] == n % 10
    assert out[6] == 1


def bfloat16_bits(x):
    """Round to nearest even, on the integers."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("mode", [0, 1])
def test_ldmatrix_and_mma_multiply_matrices(module, mode):
    rng = np.random.default_rng(mode)
    a, b = rng.standard_normal((16, 16)).astype(np.float32), rng.standard_normal((16, 8)).astype(np.float32)
    if mode == 0:
        bits = [x.astype(np.float16).view(np.uint16) for x in (a, b)]
        a, b = (x.view(np.float16).astype(np.float64) for x in bits)
    else:
        bits = [bfloat16_bits(x) for x in (a, b)]
        a, b = ((x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for x in bits)
    given, out = np.concatenate([x.ravel() for x in bits]), np.zeros((16, 8), np.float32)
    run(module, "matrix_product", given, out, mode=mode, shared=768)
    # 16 exact products and one start value, added in float: 17 roundings of a sum bounded by the sum of magnitudes
    bound = 17 * 2.0**-24 * (np.abs(a) @ np.abs(b) + 1)
    assert (np.abs(out - (a @ b + 1)) <= bound).all()


def test_int8_mma_is_exact(module):
    rng = np.random.default_rng(3)
    a, b = rng.integers(-128, 128, (16, 32), np.int8), rng.integers(-128, 128, (32, 8), np.int8)
    out = np.zeros((16, 8), np.int32)
    given = np.concatenate([a.ravel(), np.ascontiguousarray(b.T).ravel()])
    run(module, "matrix_product_int8", given, out)
    assert np.array_equal(out, a.astype(np.int32) @ b.astype(np.int32))


def test_ldmatrix_fragments_are_those_of_the_ptx_tables(module):
    given = np.arange(4 * 8 * 8, dtype=np.uint16)
    out = np.zeros((32, 8), np.uint32)
    run(module, "load_matrix", given, out, n=16, shared=32 * 16 * 2)
    matrices = given.reshape(4, 8, 8)
    for lane in range(32):
        group, pair = lane // 4, lane % 4 * 2
        for i in range(4):
            plain, transposed = matrices[i][group, pair : pair + 2], matrices[i][pair : pair + 2, group]
            assert out[lane, i] == int(plain[0]) | int(plain[1]) << 16
            assert out[lane, 4 + i] == int(transposed[0]) | int(transposed[1]) << 16


def test_bank_conflicts_of_ldmatrix_are_counted(module):
    given, out = np.zeros(256, np.uint16), np.zeros((32, 8), np.uint32)
    # rows 128 bytes apart lie in the same four banks: 8 passes instead of 1, for each of 2 x 4 matrices
    assert run(module, "load_matrix", given, out, n=64, shared=32 * 64 * 2).bank_conflicts == 8 * 7
    counted = run(module, "load_matrix", given, out, n=72, shared=32 * 72 * 2)
    assert (counted.bank_conflicts, counted.ldmatrix) == (0, 8)


def test_an_asynchronous_copy_arrives_when_it_is_waited_for(module):
    given, out = np.arange(256, dtype=np.float32).reshape(32, 8), np.zeros((32, 8), np.float32)
    assert run(module, "copy_async", given, out, mode=0, shared=1024).async_bytes == 1024
    assert np.array_equal(out, given)
    run(module, "copy_async", given, out, mode=2, shared=1024)
    assert not out.any(), "a source that does not exist gives zeros"
    run(module, "copy_async", given, out, mode=3, shared=1024)
    assert np.array_equal(out[:, :4], given[:, :4])
    assert np.isnan(out[:, 4:]).all(), "the younger group has not been waited for"


def test_fp16_and_bfloat16_conversions_are_exact_or_to_nearest_even(module):
    bits = np.arange(65536, dtype=np.uint16)
    floats = np.zeros(65536, np.float32)
    run(module, "convert", bits, floats, n=65536, mode=0, block=(256,))
    assert np.array_equal(floats, bits.view(np.float16).astype(np.float32), equal_nan=True)
    run(module, "convert", bits, floats, n=65536, mode=1, block=(256,))
    assert np.array_equal(floats, (bits.astype(np.uint32) << 16).view(np.float32), equal_nan=True)

    # every fp16, the middles between neighbours, and just beside the middles; then random bit patterns
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (finite[:-1] + finite[1:]) / 2
    near = [np.nextafter(middles, s * np.float32(np.inf)) for s in (np.float32(1), np.float32(-1))]
    random = np.random.default_rng(0).integers(0, 2**32, 50000, np.uint32).view(np.float32)
    edges = np.array([65519.996, 65520.0, 65504.0, 1e30, np.inf, 2.0**-25, 2.0**-24, 1e-45, 0.0], np.float32)
    values = np.concatenate([finite, middles, *near, edges, random])
    values = np.concatenate([values, -values])
    values = values[~np.isnan(values)]
    out = np.zeros(values.size, np.uint16)
    run(module, "convert", values, out, n=values.size, mode=2, block=(256,))
    with np.errstate(over="ignore"):
        assert np.array_equal(out, values.astype(np.float16).view(np.uint16))
    run(module, "convert", values, out, n=values.size, mode=3, block=(256,))
    assert np.array_equal(out, bfloat16_bits(values))
    for mode in (2, 3):
        run(module, "convert", np.full(1, np.nan, np.float32), out, n=1, mode=mode)
        assert out[0] == 0x7FFF, "the canonical NaN of cvt"


# ---- schedules -------------------------------------------------------------------------------------------------------


def test_block_order_and_thread_order_follow_the_request(module):
    def order(mode, **options):
        out = np.zeros(33, np.int32)
        run(module, "order", None, out, mode=mode, grid=(1 if mode else 32,), **options)
        return out[1:].tolist()

    assert order(0) == list(range(32))
    assert order(0, block_order="reversed") == list(range(31, -1, -1))
    shuffled = order(0, block_order="shuffled", seed=7)
    assert shuffled != list(range(32))
    assert sorted(shuffled) == list(range(32))
    assert order(0, block_order="shuffled", seed=7) == shuffled, "the same seed, the same schedule"
    threads = [order(1, seed=seed) for seed in (1, 2, 3)]
    assert all(sorted(t) == list(range(32)) for t in threads)
    assert threads[0] != threads[1] != threads[2]
    assert order(1, seed=2) == threads[1]


# ---- what CUDA forbids -----------------------------------------------------------------------------------------------


REFUSED = [
    ("divergent_barrier", 0, "the thread ended while 40 threads wait for it at __syncthreads"),
    ("divergent_barrier", 1, "threads of the block meet at different barriers"),
    (
        "divergent_barrier",
        2,
        "deadlock in block \\(0,0,0\\): 64 of 64 threads never finish; 40 wait at __syncthreads",
    ),
    ("early_exit", 3, "the thread ended while 3 threads wait for it at __syncthreads"),
    ("early_exit", 0, "after 1 threads of the block have ended"),
    ("divergent_shuffle", 0, "the thread ended while lanes of its warp wait for it in __shfl_xor_sync"),
    ("divergent_shuffle", 1, "lanes of a warp meet in different collectives: __shfl_xor_sync and __shfl_sync"),
    ("divergent_shuffle", 2, "mask 0000ffff does not name the calling lane 16"),
    ("divergent_shuffle", 3, "a shuffle reads lane 20, which does not take part"),
    ("divergent_shuffle", 4, "mask ffff0000 overlaps __shfl_sync with mask 0001ffff"),
    ("divergent_shuffle", 5, "the thread ended while|names lanes that have ended \\(00000200\\)"),
    ("bad_copy", 0, "cp.async: .* is not 16-byte aligned"),
    ("bad_copy", 1, "ended with 1 cp.async that it never waited for"),
    ("bad_copy", 2, "ended with 1 cp.async that it never waited for"),
    ("bad_copy", 3, "more than 256 cp.async of one thread in flight"),
    ("bad_copy", 4, "more than 16 cp.async groups in flight"),
    ("misaligned_matrix", 0, "ldmatrix.x4: the row address .* is not 16-byte aligned"),
]


@pytest.mark.parametrize(("kernel", "mode", "words"), REFUSED, ids=[f"{kernel}-{mode}" for kernel, mode, _ in REFUSED])
@pytest.mark.parametrize("seed", [0, 4])
def test_undefined_behaviour_is_refused_with_words(module, kernel, mode, words, seed):
    out, given = np.zeros(64, np.int32), np.zeros(64, np.int32)
    block = (64,) if kernel in ("divergent_barrier", "early_exit", "divergent_shuffle") else (32,)
    if seed:
        words = f"The emulator stopped {kernel}: "  # which rule breaks first is the seed's
    with pytest.raises(emulate.LaunchError, match=words) as caught:
        run(module, kernel, given, out, mode=mode, block=block, shared=1024, seed=seed)
    assert "block (0,0,0)" in str(caught.value)


def test_the_emulator_goes_on_after_a_refusal(module):
    out = np.zeros(64, np.int32)
    with pytest.raises(emulate.LaunchError):
        run(module, "early_exit", None, out, block=(64,), mode=3)
    test_a_barrier_makes_shared_memory_visible_in_any_order(module, 3, "reversed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "no_such"}, "the library has no kernel no_such"),
        ({"block": (65,)}, "order runs with 1 to 64 threads a block, got 65 x 1 x 1"),
        ({"block": (0,)}, "1 to 64 threads a block, got 0"),
        ({"grid": (0,)}, "a grid of 0 x 1 x 1 is not possible"),
        ({"grid": (1, 65536)}, "a grid of 1 x 65536 x 1 is not possible"),
        ({"shared": 1 << 20}, "1048576 bytes of shared memory; no device has more than 232448"),
    ],
)
def test_a_launch_that_no_device_takes_is_refused(module, options, words):
    options = {"kernel": "order", **options}
    with pytest.raises(emulate.LaunchError, match=words):
        run(module, options.pop("kernel"), None, np.zeros(64, np.int32), **options)


def test_a_parameter_structure_of_another_size_is_refused(module):
    class Short(ctypes.Structure):
        _fields_ = (("n", ctypes.c_int),)

    with pytest.raises(emulate.LaunchError, match="takes a parameter struct of 24 bytes, got 4"):
        emulate.launch(module, "order", Short(1), grid=(1,), block=(32,))


def test_a_module_lists_its_kernels(module):
    assert module.kernels["builtins"] == emulate.KernelInfo(24, 1024)
    assert module.kernels["order"].max_threads == 64


# ---- wrong calls -----------------------------------------------------------------------------------------------------


def test_pointers_must_lie_in_the_buffers(module):
    given, out = np.zeros(4, np.float32), np.zeros(64, np.int32)
    params = IO(given.ctypes.data, out.ctypes.data, 0, 0)
    with pytest.raises(UsageError, match=r"pointer input of IO lies in none of the 1 buffers"):
        emulate.launch(module, "order", params, grid=(1,), block=(32,), buffers=[out])
    with pytest.raises(UsageError, match=r"Buffer 0 has gaps: shape \(32,\), strides \(8,\)"):
        emulate.launch(module, "order", params, grid=(1,), block=(32,), buffers=[out[::2], given])


def test_pointers_are_found_in_nested_structures_and_arrays():
    class Inner(ctypes.Structure):
        _fields_ = (("size", ctypes.c_int), ("data", ctypes.c_void_p))

    class Outer(ctypes.Structure):
        _fields_ = (("many", Inner * 2), ("some", ctypes.c_void_p * 2), ("plain", ctypes.c_int * 3))

    outer = Outer()
    outer.many[1].data, outer.some[0] = 0x1000, 0x2000
    assert list(emulate.pointers(outer)) == [
        (8, "many.0.data", 0),
        (24, "many.1.data", 0x1000),
        (32, "some.0", 0x2000),
        (40, "some.1", 0),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": ()}, "Found grid"),
        ({"block": (1, 1, 1, 1)}, "Found block"),
        ({"block_order": "any"}, "Found block_order 'any'"),
    ],
)
def test_wrong_options_of_a_launch(module, options, words):
    with pytest.raises(UsageError, match=words):
        run(module, "order", None, np.zeros(64, np.int32), **options)


def test_builds_that_cannot_be(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="Found sanitizer 'memory'"):
        emulate.build(SOURCE, sanitizer="memory")
    with pytest.raises(KernelError, match=r"Found no CUDA source .*absent\.cu"):
        emulate.build(tmp_path / "absent.cu")
    broken = tmp_path / "broken.cu"
    broken.write_text('#include "edgemm_cuda.cuh"\nnonsense here;\n')
    with pytest.raises(KernelError, match=r"cannot compile the kernel: .*broken\.cu:2"):
        emulate.build(broken, cache_dir=tmp_path)
    static_shared = tmp_path / "static.cu"
    static_shared.write_text('#include "edgemm_cuda.cuh"\n__device__ void f() { __shared__ float x[3]; (void)x; }\n')
    with pytest.raises(KernelError, match="dynamic shared memory only"):
        emulate.build(static_shared, cache_dir=tmp_path)
    (tmp_path / "file").write_text("")
    good = tmp_path / "good.cu"
    good.write_text('#include "edgemm_cuda.cuh"\n')
    with pytest.raises(KernelError, match=r"Cannot make .*Set EDGEMM_CACHE"):
        emulate.build(good, cache_dir=tmp_path / "file")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelError, match=r"Found no C\+\+ compiler \(no-such-compiler\).*apt install g\+\+ clang"):
        emulate.build(SOURCE)


def test_a_build_is_cached_by_its_text_and_defines(tmp_path):
    source = tmp_path / "one.cu"
    text = '#include "edgemm_cuda.cuh"\nstruct P { int* out; };\n'
    text += "EDGEMM_KERNEL(one, P, 32) { p.out[threadIdx.x] = VALUE; }\n"
    source.write_text(text)

    class P(ctypes.Structure):
        _fields_ = (("out", ctypes.c_void_p),)

    def value(module):
        out = np.zeros(32, np.int32)
        emulate.launch(module, "one", P(out.ctypes.data), grid=(1,), block=(32,), buffers=[out])
        return out[0]

    first = emulate.build(source, defines={"VALUE": 3}, cache_dir=tmp_path)
    assert emulate.build(source, defines={"VALUE": 3}, cache_dir=tmp_path) == first
    other = emulate.build(source, defines={"VALUE": 4}, cache_dir=tmp_path)
    source.write_text(text + "// changed\n")
    assert len({first.path, other.path, emulate.build(source, defines={"VALUE": 3}, cache_dir=tmp_path).path}) == 3
    assert (value(first), value(other)) == (3, 4)


def test_the_portable_context_switch_works_too():
    module = emulate.build(SOURCE, defines={"CUDA_EMULATOR_UCONTEXT": 1})
    test_a_barrier_makes_shared_memory_visible_in_any_order(module, 3, "reversed")
    test_ldmatrix_and_mma_multiply_matrices(module, 0)
    test_the_emulator_goes_on_after_a_refusal(module)


def test_source_dir_says_what_is_missing():
    assert (source_dir() / "edgemm_cuda.cuh").is_file()
    with pytest.raises(KernelError, match="Found no CUDA sources 'nothing'"):
        source_dir("nothing")


# ---- sanitizers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["address", "undefined", "thread"])
def sanitized(request):
    return emulate.build(SOURCE, sanitizer=request.param)


SEEN = {
    1: ("address", "heap-buffer-overflow"),
    2: ("address", "heap-buffer-overflow"),
    3: ("undefined", "misaligned address"),
    4: ("undefined", "overflow|out of range|left shift"),
    5: ("thread", "data race"),
    6: ("thread", "data race"),
    9: ("thread", "data race"),
}


@pytest.mark.parametrize("mode", range(10))
def test_each_sanitizer_sees_its_faults_and_nothing_else(sanitized, mode):
    out = np.zeros(64, np.int32)
    sees, words = SEEN.get(mode, ("none", ""))
    options = {"n": 64, "mode": mode, "block": (64,), "grid": (2 if mode == 6 else 1,), "shared": 64 * 4}
    if sees == sanitized.sanitizer:
        with pytest.raises(emulate.LaunchError, match=f"The {sees} sanitizer stopped faulty.*({words})") as caught:
            run(sanitized, "faulty", None, out, **options)
        assert "emulator_kernels.cu" in caught.value.report
    else:
        run(sanitized, "faulty", None, out, **options)


@pytest.mark.parametrize("threads", [32, 128, 256])
def test_a_race_between_blocks_of_any_size_is_seen(sanitized, threads):
    out = np.zeros(12 * 256, np.int32)
    run(sanitized, "blocks_write", None, out, grid=(12,), block=(threads,), mode=0)
    assert np.array_equal(out[: 12 * threads], np.repeat(np.arange(12), threads))
    if sanitized.sanitizer != "thread":
        return
    with pytest.raises(emulate.LaunchError, match="data race"):
        run(sanitized, "blocks_write", None, out, grid=(12,), block=(threads,), mode=1)


@pytest.mark.parametrize("of_block", [0, 1], ids=["warp", "block"])
def test_a_lane_that_runs_ahead_to_the_next_barrier_hides_no_race(sanitized, of_block):
    out = np.zeros(32, np.float32)
    run(sanitized, "ahead", None, out, shared=128, n=of_block, mode=1)
    assert (out == 1).all()
    if sanitized.sanitizer == "thread":
        with pytest.raises(emulate.LaunchError, match="data race"):
            run(sanitized, "ahead", None, out, shared=128, n=of_block, mode=0)


@pytest.mark.parametrize("block_order", ["forward", "reversed"])
def test_correct_kernels_are_clean(sanitized, block_order):
    given, out = np.arange(2 * 96, dtype=np.float32), np.zeros(2 * 96, np.float32)
    run(sanitized, "reverse_block", given, out, grid=(2,), block=(96,), shared=384, seed=3, block_order=block_order)
    assert np.array_equal(out, given.reshape(2, 96)[:, ::-1].ravel())
    matrix, product = np.ones(384, np.float16), np.zeros((16, 8), np.float32)
    assert run(sanitized, "matrix_product", matrix, product, shared=768).ldmatrix == 8
    assert (product == 17).all()
    rows, copied = np.ones((32, 8), np.float32), np.zeros((32, 8), np.float32)
    run(sanitized, "copy_async", rows, copied, shared=1024)
    assert np.array_equal(copied, rows)
    sums, counter = np.zeros(9, np.int32), np.zeros(1, np.uint32)
    run(sanitized, "last_block", counter, sums, grid=(8,), block_order=block_order)
    assert sums[0] == 36
    assert counter[0] == 8


def test_a_refusal_reaches_the_caller_from_a_sanitized_program(sanitized):
    with pytest.raises(emulate.LaunchError, match=r"The emulator stopped early_exit: .*__syncthreads"):
        run(sanitized, "early_exit", None, np.zeros(64, np.int32), block=(64,), mode=3)


def test_a_read_only_buffer_is_not_written_back(sanitized):
    given, out = np.arange(96, dtype=np.float32), np.zeros(96, np.float32)
    given.setflags(write=False)
    run(sanitized, "reverse_block", given, out, block=(96,), shared=384)
    assert out[0] == 95


def test_the_program_refuses_a_damaged_request(sanitized, tmp_path):
    (tmp_path / "request").write_bytes(b"\x04\0\0\0na")
    done = subprocess.run([sanitized.path, tmp_path / "request", tmp_path / "result"], capture_output=True, check=False)
    assert (done.returncode, b"cut short" in done.stderr) == (2, True)


# ---- the folder alone ------------------------------------------------------------------------------------------------


def test_the_example_of_its_readme_runs_with_nothing_else(tmp_path):
    folder = source_dir("emulator")
    text = (folder / "README.md").read_text()
    code = text.split("```cpp\n")[1].split("```")[0]
    command = text.split("```\ng++ ")[1].split("\n```")[0]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "kernel.cu").write_text(code)
    subprocess.run(["g++", *command.split()], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "libkernel.so"))

    class Params(ctypes.Structure):
        _fields_ = (("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("n", ctypes.c_int))

    x, y = np.arange(512, dtype=np.float32), np.zeros(512, np.float32)
    launch = (ctypes.c_uint32 * 14)(2, 1, 1, 256, 1, 1, 1024)  # grid, block, shared bytes; zeros: in order
    params, message = Params(x.ctypes.data, y.ctypes.data, 512), ctypes.create_string_buffer(2048)
    size = ctypes.c_size_t(ctypes.sizeof(params))
    failed = library.cuda_emulator_run(
        b"reverse", ctypes.byref(params), size, launch, None, message, ctypes.c_size_t(2048)
    )
    assert not failed, message.value
    assert np.array_equal(y, x.reshape(2, 256)[:, ::-1].ravel())
