// Small kernels that show what the emulator does and refuses; tests/kernels/test_emulator.py runs them.
#include "edgemm_cuda.cuh"

using edgemm::u16;
using edgemm::u32;

struct IO {
  const void* in;
  void* out;
  int n;
  int mode;
};

// ---- what must work --------------------------------------------------------------------------------------------------------

EDGEMM_KERNEL(builtins, IO, 1024) {
  u32* out = static_cast<u32*>(p.out);
  const u32 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const u32 thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const u32 i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  out[i] = i;
}

EDGEMM_KERNEL(reverse_block, IO, 1024) {
  EDGEMM_DYNAMIC_SHARED(raw);
  float* shared = reinterpret_cast<float*>(raw);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  shared[threadIdx.x] = static_cast<const float*>(p.in)[i];
  __syncthreads();
  static_cast<float*>(p.out)[i] = shared[blockDim.x - 1 - threadIdx.x];
}

// out: 12 rows of one value a thread
EDGEMM_KERNEL(warp_collectives, IO, 64) {
  int* out = static_cast<int*>(p.out);
  const int t = threadIdx.x, n = blockDim.x;
  const int x = static_cast<const int*>(p.in)[t];
  out[0 * n + t] = __shfl_sync(0xffffffffu, x, 5);
  out[1 * n + t] = __shfl_xor_sync(0xffffffffu, x, 3);
  out[2 * n + t] = __shfl_up_sync(0xffffffffu, x, 2);
  out[3 * n + t] = __shfl_down_sync(0xffffffffu, x, 7);
  out[4 * n + t] = __shfl_down_sync(0xffffffffu, x, 3, 8);
  out[5 * n + t] = static_cast<int>(__ballot_sync(0xffffffffu, x > 0));
  out[6 * n + t] = __reduce_add_sync(0xffffffffu, x);
  out[7 * n + t] = __reduce_min_sync(0xffffffffu, x);
  out[8 * n + t] = __reduce_max_sync(0xffffffffu, x);
  out[9 * n + t] = __any_sync(0xffffffffu, x > 90) + 2 * __all_sync(0xffffffffu, x > -100);
  out[10 * n + t] = static_cast<int>(__match_any_sync(0xffffffffu, static_cast<u32>(x & 3)));
  // two halves of a warp, each with its own mask
  out[11 * n + t] = (t & 31) < 16 ? __shfl_sync(0x0000ffffu, x, 1) : __shfl_sync(0xffff0000u, x, 20);
}

EDGEMM_KERNEL(block_votes, IO, 64) {
  int* out = static_cast<int*>(p.out);
  const int x = static_cast<const int*>(p.in)[threadIdx.x];
  const int count = __syncthreads_count(x > 0), any = __syncthreads_or(x > 0), all = __syncthreads_and(x > 0);
  out[threadIdx.x] = count * 4 + any * 2 + all;
}

EDGEMM_KERNEL(atomics, IO, 64) {
  int* out = static_cast<int*>(p.out);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&out[0], i);
  atomicMax(&out[1], i);
  atomicMin(&out[2], -i);
  atomicAdd(reinterpret_cast<float*>(&out[3]), 0.5f);
  atomicOr(&out[4], 1 << (i & 31));
  atomicInc(reinterpret_cast<unsigned*>(&out[5]), 9u);
  if (atomicCAS(&out[6], 0, 1) == 0) out[7] = i;
}

// in: A [16, 16] and B [16, 8] of 16-bit elements by rows; out: C [16, 8] floats. mode 0: fp16, 1: bfloat16.
EDGEMM_KERNEL(matrix_product, IO, 32) {
  EDGEMM_DYNAMIC_SHARED(raw);
  u16* const a = reinterpret_cast<u16*>(raw);
  u16* const b = a + 256;
  const int lane = threadIdx.x;
  for (int i = lane; i < 256 + 128; i += 32) a[i] = static_cast<const u16*>(p.in)[i];
  __syncwarp();
  u32 fa[4], fb[4];
  edgemm::ldmatrix_x4(fa, a + (lane & 15) * 16 + (lane >> 4) * 8);
  edgemm::ldmatrix_x4_trans(fb, b + (lane & 15) * 8);  // B by rows: a column-major fragment needs .trans
  float c[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  if (p.mode == 0)
    edgemm::mma_m16n8k16(c, fa, {fb[0], fb[1]}, edgemm::half_t{});
  else
    edgemm::mma_m16n8k16(c, fa, {fb[0], fb[1]}, edgemm::bfloat16_t{});
  for (int i = 0; i < 4; ++i)
    static_cast<float*>(p.out)[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
}

// in: 8 rows of 8 elements; out: what each lane receives, plain then .trans
EDGEMM_KERNEL(load_matrix, IO, 32) {
  EDGEMM_DYNAMIC_SHARED(raw);
  u16* const rows = reinterpret_cast<u16*>(raw);
  const int lane = threadIdx.x, stride = p.n;
  for (int i = lane; i < 4 * 64; i += 32) rows[i / 8 * stride + i % 8] = static_cast<const u16*>(p.in)[i];
  __syncwarp();
  u32 r[4];
  edgemm::ldmatrix_x4(r, rows + lane * stride);
  for (int i = 0; i < 4; ++i) static_cast<u32*>(p.out)[lane * 8 + i] = r[i];
  edgemm::ldmatrix_x4_trans(r, rows + lane * stride);
  for (int i = 0; i < 4; ++i) static_cast<u32*>(p.out)[lane * 8 + 4 + i] = r[i];
}

#if defined(EDGEMM_EMULATOR)
// in: A [16, 32] then B [32, 8] transposed, int8; out: C [16, 8] int. Fragments are gathered by hand, as the PTX tables give them.
EDGEMM_KERNEL(matrix_product_int8, IO, 32) {
  const signed char* a = static_cast<const signed char*>(p.in);
  const signed char* bt = a + 16 * 32;
  const int group = threadIdx.x / 4, t = threadIdx.x % 4;
  u32 fa[4], fb[2];
  for (int i = 0; i < 4; ++i) memcpy(&fa[i], a + (group + i % 2 * 8) * 32 + t * 4 + i / 2 * 16, 4);
  for (int i = 0; i < 2; ++i) memcpy(&fb[i], bt + group * 32 + t * 4 + i * 16, 4);
  int c[4] = {0, 0, 0, 0};
  cuda_emulator::ptx::mma_m16n8k32_s8(c, fa, fb);
  for (int i = 0; i < 4; ++i) static_cast<int*>(p.out)[(group + i / 2 * 8) * 8 + t * 2 + i % 2] = c[i];
}
#endif

// A lane runs ahead to the barrier after: what the others have not yet read it writes. mode 1: with the barrier that is missing;
// n: block barriers instead of those of the warp.
EDGEMM_KERNEL(ahead, IO, 32) {
  EDGEMM_DYNAMIC_SHARED(raw);
  float* const shared = reinterpret_cast<float*>(raw);
  const auto barrier = [&] {
    if (p.n)
      __syncthreads();
    else
      __syncwarp();
  };
  barrier();
  shared[threadIdx.x] = 1.0f;
  if (p.mode == 1) barrier();
  static_cast<float*>(p.out)[threadIdx.x] = shared[threadIdx.x ^ 1];
  barrier();
}

EDGEMM_KERNEL(fresh_shared, IO, 32) {
  EDGEMM_DYNAMIC_SHARED(raw);
  float* const shared = reinterpret_cast<float*>(raw);
  static_cast<float*>(p.out)[blockIdx.x * 32 + threadIdx.x] = shared[threadIdx.x];
  shared[threadIdx.x] = 1.0f;  // the next block must not see it
}

// mode 0: read after the wait; 1: before it; 2: the source does not exist; 3: two groups, wait for the older
EDGEMM_KERNEL(copy_async, IO, 32) {
  EDGEMM_DYNAMIC_SHARED(raw);
  float* const shared = reinterpret_cast<float*>(raw) + threadIdx.x * 8;
  const float* const in = static_cast<const float*>(p.in) + threadIdx.x * 8;
  float* const out = static_cast<float*>(p.out) + threadIdx.x * 8;
  edgemm::cp_async_16(shared, in, p.mode != 2);
  if (p.mode == 3) edgemm::cp_async_commit();
  edgemm::cp_async_16(shared + 4, in + 4, p.mode != 2);
  edgemm::cp_async_commit();
  if (p.mode == 3) edgemm::cp_async_wait<1>();
  if (p.mode == 0 || p.mode == 2) edgemm::cp_async_wait<0>();
  for (int i = 0; i < 8; ++i) out[i] = shared[i];
  edgemm::cp_async_wait<0>();
}

// in: bits of fp16 (mode 0), bfloat16 (1) to float; floats to fp16 (2), bfloat16 (3)
EDGEMM_KERNEL(convert, IO, 256) {
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
    const u16* bits = static_cast<const u16*>(p.in);
    const float* floats = static_cast<const float*>(p.in);
    if (p.mode == 0) static_cast<float*>(p.out)[i] = edgemm::to_float(edgemm::half_t{bits[i]});
    if (p.mode == 1) static_cast<float*>(p.out)[i] = edgemm::to_float(edgemm::bfloat16_t{bits[i]});
    if (p.mode == 2) static_cast<u16*>(p.out)[i] = edgemm::to_half(floats[i]).bits;
    if (p.mode == 3) static_cast<u16*>(p.out)[i] = edgemm::to_bfloat16(floats[i]).bits;
  }
}

// out[i]: the order in which the blocks (mode 0) or the threads between two barriers (mode 1) came
EDGEMM_KERNEL(order, IO, 64) {
  int* out = static_cast<int*>(p.out);
  if (p.mode == 0 && threadIdx.x == 0) out[1 + atomicAdd(&out[0], 1)] = blockIdx.x;
  __syncthreads();
  if (p.mode == 1) out[1 + atomicAdd(&out[0], 1)] = threadIdx.x;
}

// a counter that only the last block reads, as in "threadFenceReduction"
EDGEMM_KERNEL(last_block, IO, 32) {
  int* const sums = static_cast<int*>(p.out);
  unsigned* const counter = static_cast<unsigned*>(const_cast<void*>(p.in));
  if (threadIdx.x == 0) {
    sums[1 + blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    if (atomicAdd(counter, 1u) == gridDim.x - 1) {
      __threadfence();
      int total = 0;
      for (unsigned b = 0; b < gridDim.x; ++b) total += sums[1 + b];
      sums[0] = total;
    }
  }
}

// ---- what must be refused --------------------------------------------------------------------------------------------------

EDGEMM_KERNEL(divergent_barrier, IO, 64) {
  if (threadIdx.x < 40) __syncthreads();
  if (p.mode == 1 && threadIdx.x >= 40) __syncthreads();
  if (p.mode == 2 && threadIdx.x >= 40) __syncwarp();  // the warp's other lanes wait at the barrier
}

EDGEMM_KERNEL(early_exit, IO, 64) {
  if (static_cast<int>(threadIdx.x) == p.mode) return;
  __syncthreads();
}

EDGEMM_KERNEL(divergent_shuffle, IO, 64) {
  int x = threadIdx.x;
  if (p.mode == 0 && (threadIdx.x & 31) < 16) x = __shfl_xor_sync(0xffffffffu, x, 1);
  if (p.mode == 1) x = (threadIdx.x & 1) ? __shfl_xor_sync(0xffffffffu, x, 1) : __shfl_sync(0xffffffffu, x, 0);
  if (p.mode == 2) x = __shfl_sync(0x0000ffffu, x, 0);
  if (p.mode == 3 && (threadIdx.x & 31) < 16) x = __shfl_sync(0x0000ffffu, x, 20);
  if (p.mode == 4) x = (threadIdx.x & 31) < 16 ? __shfl_sync(0x0001ffffu, x, 0) : __shfl_sync(0xffff0000u, x, 16);
  if (p.mode == 5) {
    if ((threadIdx.x & 31) == 9) return;
    x = __shfl_xor_sync(0xffffffffu, x, 1);
  }
  static_cast<int*>(p.out)[threadIdx.x] = x;
}

EDGEMM_KERNEL(bad_copy, IO, 32) {
  EDGEMM_DYNAMIC_SHARED(raw);
  unsigned char* const shared = raw + threadIdx.x * 16;
  if (p.mode == 0) edgemm::cp_async_16(shared + 4, p.in, true);
  if (p.mode == 1) edgemm::cp_async_16(shared, p.in, true);  // never committed
  if (p.mode == 2) {
    edgemm::cp_async_16(shared, p.in, true);
    edgemm::cp_async_commit();  // never waited for
  }
  if (p.mode == 3)
    for (int i = 0; i < 1000; ++i) edgemm::cp_async_16(shared, p.in, true);
  if (p.mode == 4)
    for (int i = 0; i < 1000; ++i) edgemm::cp_async_commit();
}

EDGEMM_KERNEL(misaligned_matrix, IO, 32) {
  EDGEMM_DYNAMIC_SHARED(raw);
  u32 r[4];
  edgemm::ldmatrix_x4(r, raw + threadIdx.x * 16 + 2);
}

// ---- what only a sanitizer sees --------------------------------------------------------------------------------------------

EDGEMM_KERNEL(faulty, IO, 64) {
  EDGEMM_DYNAMIC_SHARED(raw);
  int* const shared = reinterpret_cast<int*>(raw);
  int* const out = static_cast<int*>(p.out);
  const int t = threadIdx.x;
  shared[t] = t;
  __syncthreads();
  if (p.mode == 1) out[p.n + (t == 63 ? 0 : -1 - t)] = t;           // one past the end of global memory
  if (p.mode == 2) shared[t + 1] = t;                               // one past the end of shared memory
  if (p.mode == 3 && t == 0) out[0] = *reinterpret_cast<int*>(raw + 2);  // misaligned
  if (p.mode == 4 && t == 1) out[0] = (p.n << 25) * p.n;            // signed overflow
  if (p.mode == 5) shared[t ^ 1] += t;                              // read of a neighbour's element without a barrier
  if (p.mode == 5) out[t] = shared[t];
  if (p.mode == 6 && t == 0) out[0] = static_cast<int>(blockIdx.x);      // blocks write the same element
  if (p.mode == 7) out[t] = shared[__shfl_xor_sync(0xffffffffu, t, 1)];  // clean: read only
  if (p.mode == 8) {
    shared[t] = 2 * t;
    __syncwarp();
    out[t] = shared[t ^ 1];  // clean: the barrier of the warp orders it
  }
  if (p.mode == 9) {
    shared[t] = 2 * t;
    __shfl_xor_sync(0xffffffffu, t, 1);  // a shuffle orders no memory
    out[t] = shared[t ^ 1];
  }
}

// blocks write the same elements (mode 1), or each its own (mode 0)
EDGEMM_KERNEL(blocks_write, IO, 256) {
  __syncthreads();
  static_cast<int*>(p.out)[(p.mode ? 0 : blockIdx.x * blockDim.x) + threadIdx.x] = static_cast<int>(blockIdx.x);
}
