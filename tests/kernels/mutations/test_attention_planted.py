"""Bugs planted in the attention kernels and in the emulator: each must be caught, for the right reason."""

from __future__ import annotations

import pytest
from planted import Planted, check_caught, check_place, check_sound

HEADER = "csrc/attention.cuh"
RUNTIME = "emulator/runtime.cpp"

WRONG = "beyond the bound"
UNWAITED = "beyond the bound|never waited for"
MANY = "test_attention.py::test_sanitizers_find_nothing_with_many_queries"
FEW = "test_attention.py::test_sanitizers_find_nothing_with_few_queries"
RACE = "thread sanitizer stopped.*data race"


def option(name: str, shape: str = "32-70-150") -> str:
    return f"test_attention.py::test_every_option[{shape}-{name}]"


BUGS = [
    # ---- synchronisation -------------------------------------------------------------------------------------------
    Planted(
        "no barrier before a stage is filled again",
        HEADER,
        "      __syncthreads();  // this tile has come, and every warp is done with the stage that is filled next\n",
        "",
        f"{MANY}[thread]",
        RACE,
    ),
    Planted(
        "a tile's copy is not waited for",
        HEADER,
        "      cp_async_wait<0>();\n      __syncthreads();  // this tile",
        "      cp_async_wait<1>();\n      __syncthreads();  // this tile",
        option("plain"),
        UNWAITED,
    ),
    Planted(
        "the next tile goes where this one lies",
        HEADER,
        "load(first + C::kKeys, stage ^ 1);",
        "load(first + C::kKeys, stage);",
        option("plain"),
        UNWAITED,
    ),
    Planted(
        "no barrier of the warp after the split's copies",
        HEADER,
        "    __syncwarp();  // the other lanes' copies\n",
        "",
        f"{FEW}[thread]",
        RACE,
    ),
    Planted(
        "no barrier of the warp before the split's stage is filled again",
        HEADER,
        "    __syncwarp();  // the stage is filled again next\n",
        "",
        f"{FEW}[thread]",
        RACE,
    ),
    Planted(
        "the split waits for the older copy only",
        HEADER,
        "    cp_async_wait<1>();\n    __syncwarp();",
        "    cp_async_wait<2>();\n    __syncwarp();",
        option("plain", "32-5-150"),
        UNWAITED,
    ),
    Planted(
        "warps put their parts where others still read keys",
        HEADER,
        "  __syncthreads();\n  float* const parts",
        "  float* const parts",
        f"{FEW}[thread]",
        RACE,
    ),
    Planted(
        "parts are joined before they are written",
        HEADER,
        "  __syncthreads();\n  for (int i = thread; i < C::kRows",
        "  for (int i = thread; i < C::kRows",
        f"{FEW}[thread]",
        RACE,
    ),
    Planted(
        "a warp without keys skips the barrier of the block",
        HEADER,
        "      cp_async_wait<0>();\n      __syncthreads();  // this tile",
        "      if (first > warp_high) continue;\n      cp_async_wait<0>();\n      __syncthreads();  // this tile",
        option("causal"),
        "emulator stopped.*(__syncthreads|never waited for)",
    ),
    Planted(
        "half a warp shuffles",
        HEADER,
        "      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));",
        "      if (lane < 16) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));",
        option("plain"),
        "emulator stopped.*collectives",
    ),
    Planted(
        "the ring's position is advanced while others read it",
        HEADER,
        "  __syncthreads();  // everyone has read the position\n",
        "",
        "test_attention.py::test_sanitizers_find_nothing_in_the_ring[thread]",
        RACE,
    ),
    Planted(
        "blocks write the same part",
        HEADER,
        "const i64 part = flat_row * p.splits + split;",
        "const i64 part = flat_row * p.splits;",
        f"{FEW}[thread]",
        RACE,
    ),
    # ---- memory ----------------------------------------------------------------------------------------------------
    Planted(
        "a row past the last query is written",
        HEADER,
        "    if (query >= p.q_len) continue;",
        "    if (query > p.q_len) continue;",
        f"{MANY}[address]",
        "address sanitizer stopped.*overflow",
    ),
    Planted(
        "rows are longer than the shared memory is made for",
        HEADER,
        "  static constexpr int kRow = D + 8;                    //",
        "  static constexpr int kRow = D + 16;                   //",
        f"{MANY}[address]",
        "address sanitizer stopped.*overflow",
    ),
    Planted(
        "a store of two elements at an odd one",
        HEADER,
        "      *reinterpret_cast<u32*>(out + i * 8 + (lane & 3) * 2) =",
        "      *reinterpret_cast<u32*>(out + i * 8 + (lane & 3) * 2 - (query == 3)) =",
        f"{MANY}[undefined]",
        "undefined sanitizer stopped.*misaligned",
    ),
    Planted(
        "the last piece of a tile is not copied",
        HEADER,
        "i < kCount * kChunks; i +=",
        "i < kCount * kChunks - 1; i +=",
        option("plain"),
        UNWAITED,
    ),
    Planted(
        "the ring wraps one slot late",
        HEADER,
        "return at >= capacity ?",
        "return at > capacity ?",
        option("ring"),
        "beyond the bound",
    ),
    Planted(
        "the ring of few queries wraps one slot short",
        HEADER,
        "wrapped = at - static_cast<u32>(capacity);",
        "wrapped = at - static_cast<u32>(capacity) - 1u;",
        option("ring", "32-5-150"),
        "beyond the bound|outside|overflow",
    ),
    Planted(
        "rows that meet in the same banks",
        HEADER,
        "  static constexpr int kRow = D + 8;                    //",
        "  static constexpr int kRow = D;                        //",
        "test_attention.py::test_ldmatrix_meets_no_bank_conflict[70-64]",
        "bank_conflicts",
    ),
    # ---- numbers ---------------------------------------------------------------------------------------------------
    Planted(
        "fragments of the keys swapped",
        HEADER,
        "mma_m16n8k16(s[2 * i], q[d], {b[0], b[1]}, T{});\n"
        "        mma_m16n8k16(s[2 * i + 1], q[d], {b[2], b[3]}, T{});",
        "mma_m16n8k16(s[2 * i], q[d], {b[0], b[2]}, T{});\n"
        "        mma_m16n8k16(s[2 * i + 1], q[d], {b[1], b[3]}, T{});",
        option("plain"),
        WRONG,
    ),
    Planted(
        "values loaded without transposition",
        HEADER,
        "ldmatrix_x4_trans(b, v +",
        "ldmatrix_x4(b, v +",
        option("plain"),
        WRONG,
    ),
    Planted(
        "a row's maximum over half of its lanes",
        HEADER,
        "      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));\n",
        "",
        option("plain"),
        WRONG,
    ),
    Planted(
        "the old sum is not corrected",
        HEADER,
        "    sum[2] *= correction[1];\n",
        "",
        option("plain"),
        WRONG,
    ),
    Planted(
        "a row that sees nothing divides zero by zero",
        HEADER,
        "m == -infinity() ? 0.0f : m * scale;",
        "m * scale;",
        "test_attention.py::test_rows_without_keys_give_zeros[float16-40]",
        "assert",
    ),
    Planted(
        "splits are joined without their weights",
        HEADER,
        "      x += weight * part.x;\n      y += weight * part.y;\n    }\n"
        "    *reinterpret_cast<u32*>(out + column) = pack2(x * inverse",
        "      x += part.x;\n      y += part.y;\n    }\n    *reinterpret_cast<u32*>(out + column) = pack2(x * inverse",
        "test_attention.py::test_split_keys_are_joined[float16-3]",
        WRONG,
    ),
    Planted(
        "a part's sum is not weighted",
        HEADER,
        "      sum += weight * sums[",
        "      sum += sums[",
        option("plain", "32-5-150"),
        WRONG,
    ),
    # ---- masks -----------------------------------------------------------------------------------------------------
    Planted(
        "the last key of a row is hidden",
        HEADER,
        "if (key < low || key > high) s[",
        "if (key < low || key >= high) s[",
        option("causal"),
        WRONG,
    ),
    Planted(
        "the window begins one key late",
        HEADER,
        "return max(position[i] - p.window_before, 0);",
        "return max(position[i] - p.window_before + 1, 0);",
        option("window"),
        WRONG,
    ),
    Planted(
        "the last tile of a causal row is left out",
        HEADER,
        "min(position_of(p, keys, last_query) + p.window_after + 1, keys.count);",
        "min(position_of(p, keys, last_query) + p.window_after, keys.count);",
        "test_attention.py::test_causal_rows_at_the_edges_of_tiles[65]",
        WRONG,
    ),
    Planted(
        "the first tile of a window is left out",
        HEADER,
        "max(position_of(p, keys, query0) - p.window_before, 0)",
        "max(position_of(p, keys, last_query) - p.window_before, 0)",
        option("window"),
        WRONG,
    ),
    Planted(
        "a mask's edge inside a tile is not noticed",
        HEADER,
        "first + kKeys - 1 > high)",
        "first > high)",
        option("lengths"),
        WRONG,
    ),
    Planted(
        "causal rows aligned at the start",
        HEADER,
        "(p.align_end ? keys.count - p.q_len : 0)",
        "(p.align_end ? p.kv_len - p.q_len : 0)",
        option("causal-lengths"),
        WRONG,
    ),
    Planted(
        "query heads dealt to kv heads in turn",
        HEADER,
        "kv_head = head / (p.heads / p.kv_heads);",
        "kv_head = head % p.kv_heads;",
        option("plain"),
        WRONG,
    ),
    Planted(
        "a bias that grows with the distance",
        HEADER,
        "static_cast<float>(abs(key0 + i * 8 + e - rows.position[h]))",
        "static_cast<float>(key0 + i * 8 + e - rows.position[h])",
        option("alibi"),
        WRONG,
    ),
    Planted(
        "the table of relative positions ends one early",
        HEADER,
        "rows.position[h], -p.relative_span, p.relative_span)]",
        "rows.position[h], -p.relative_span, p.relative_span - 1)]",
        option("relative"),
        WRONG,
    ),
    Planted(
        "a key that is not there is given its bias",
        HEADER,
        "if (key >= low && key <= high) s[",
        "if (key >= low) s[",
        f"{FEW}[address]",
        "address sanitizer stopped.*overflow",
    ),
    Planted(
        "a row of the batch takes the bias of the first",
        HEADER,
        "blockIdx.z * p.bias_strides[0]",
        "0 * p.bias_strides[0]",
        option("bias"),
        WRONG,
    ),
    # ---- the emulator ----------------------------------------------------------------------------------------------
    Planted(
        "bfloat16 rounds halves up",
        "emulator/float16.h",
        "(bits + 0x7fffu + (bits >> 16 & 1u))",
        "(bits + 0x8000u)",
        "test_emulator.py::test_fp16_and_bfloat16_conversions_are_exact_or_to_nearest_even",
        "assert",
    ),
    Planted(
        "a wait waits for everything",
        RUNTIME,
        "> static_cast<unsigned>(groups_left))",
        "> 0u * static_cast<unsigned>(groups_left))",
        "test_emulator.py::test_an_asynchronous_copy_arrives_when_it_is_waited_for",
        "the younger group has not been waited for",
    ),
    Planted(
        "fragments of A swapped",
        RUNTIME,
        "a[group + i % 2 * 8][pair + i / 2 * 8 + half] =",
        "a[group + i / 2 * 8][pair + i % 2 * 8 + half] =",
        "test_emulator.py::test_ldmatrix_and_mma_multiply_matrices[0]",
        "assert",
    ),
    Planted(
        "shared memory starts as zeros",
        RUNTIME,
        "std::memset(machine.shared, 0xff, machine.shared_bytes);",
        "std::memset(machine.shared, 0, machine.shared_bytes);",
        "test_emulator.py::test_shared_memory_starts_as_nan_in_every_block",
        "assert",
    ),
    Planted(
        "a shuffle orders memory",
        RUNTIME,
        "  meet(mask, name, &in, &out, combine_shuffle, 0);",
        "  warp_barrier(mask);\n  meet(mask, name, &in, &out, combine_shuffle, 0);",
        "test_emulator.py::test_each_sanitizer_sees_its_faults_and_nothing_else[thread-9]",
        "DID NOT RAISE",
    ),
    Planted(
        "threads that ended are not missed at a barrier",
        RUNTIME,
        "  if (machine.live != machine.threads)\n",
        "  if (machine.live > machine.threads)\n",
        "test_emulator.py::test_undefined_behaviour_is_refused_with_words[0-early_exit-0]",
        "Regex pattern did not match",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name.replace(" ", "-") for bug in BUGS])
def test_the_bug_has_its_place(bug):
    check_place(bug)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=[bug.name.replace(" ", "-") for bug in BUGS])
def test_the_bug_is_caught(bug, tmp_path):
    check_caught(bug, tmp_path)


@pytest.mark.slow
def test_the_tests_pass_without_a_bug(tmp_path):
    check_sound(BUGS, tmp_path)
