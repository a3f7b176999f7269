// Everything of CUDA that is more than plain C++: kernel entry points, the 16-bit number formats, tensor core and copy
// instructions. The only header that holds PTX; it needs no other, so that NVRTC compiles a kernel with no include path but this
// folder. With EDGEMM_EMULATOR the same names come from kernels/emulator.
#pragma once

#if defined(EDGEMM_EMULATOR)
#include "cuda_emulator_ptx.h"
#endif

namespace edgemm {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

// IEEE binary16 and bfloat16: bits with a name. Arithmetic is done in float or in the tensor cores.
struct half_t {
  u16 bits;
};
struct bfloat16_t {
  u16 bits;
};

}  // namespace edgemm

// EDGEMM_KERNEL(name, Params, threads) { ... }: a plain C entry point that takes one `Params` struct by value, called `p`, and runs
// with at most `threads` threads a block. EDGEMM_KERNEL_RESIDENT also says how many blocks are to fit a multiprocessor at once, which
// limits the registers. EDGEMM_DYNAMIC_SHARED(name): the dynamic shared memory as `unsigned char* name`.
#if defined(EDGEMM_EMULATOR)
#define EDGEMM_KERNEL(name, Params, threads) CUDA_EMULATOR_KERNEL(name, Params, p, threads)
#define EDGEMM_KERNEL_RESIDENT(name, Params, threads, blocks) CUDA_EMULATOR_KERNEL(name, Params, p, threads)
#define EDGEMM_DYNAMIC_SHARED(name) CUDA_EMULATOR_DYNAMIC_SHARED(name)
#else
#define EDGEMM_KERNEL(name, Params, threads) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)
#define EDGEMM_KERNEL_RESIDENT(name, Params, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)
#define EDGEMM_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

namespace edgemm {

#if defined(EDGEMM_EMULATOR)

__device__ inline float infinity() { return INFINITY; }
__device__ inline float to_float(half_t x) { return ::cuda_emulator::half_to_float(x.bits); }
__device__ inline float to_float(bfloat16_t x) { return ::cuda_emulator::bfloat16_to_float(x.bits); }
__device__ inline half_t to_half(float x) { return {::cuda_emulator::float_to_half(x)}; }
__device__ inline bfloat16_t to_bfloat16(float x) { return {::cuda_emulator::float_to_bfloat16(x)}; }
__device__ inline u32 pack2(float low, float high, half_t) {
  return to_half(low).bits | static_cast<u32>(to_half(high).bits) << 16;
}
__device__ inline u32 pack2(float low, float high, bfloat16_t) {
  return to_bfloat16(low).bits | static_cast<u32>(to_bfloat16(high).bits) << 16;
}
__device__ inline float fast_exp2(float x) { return exp2f(x); }
__device__ inline float fast_log2(float x) { return log2f(x); }

__device__ inline void ldmatrix_x4(u32 (&r)[4], const void* row) { ::cuda_emulator::ptx::ldmatrix_x4(r, row); }
__device__ inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { ::cuda_emulator::ptx::ldmatrix_x4_trans(r, row); }
__device__ inline void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], half_t) {
  ::cuda_emulator::ptx::mma_m16n8k16_f16(d, a, b);
}
__device__ inline void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bfloat16_t) {
  ::cuda_emulator::ptx::mma_m16n8k16_bf16(d, a, b);
}
__device__ inline void cp_async_16(void* shared, const void* global, bool valid) {
  ::cuda_emulator::ptx::cp_async_16(shared, global, valid ? 16 : 0);
}
__device__ inline void cp_async_commit() { ::cuda_emulator::cp_async_commit(); }
template <int kGroupsLeft>
__device__ inline void cp_async_wait() {
  ::cuda_emulator::cp_async_wait(kGroupsLeft);
}

#else

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float to_float(half_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ float to_float(bfloat16_t x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
__device__ __forceinline__ half_t to_half(float x) {
  half_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ bfloat16_t to_bfloat16(float x) {
  bfloat16_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#endif

// Two floats to a register of two 16-bit numbers, `low` in the lower half.
__device__ __forceinline__ u32 pack2(float low, float high, half_t) {
#if __CUDA_ARCH__ >= 800
  u32 packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return to_half(low).bits | static_cast<u32>(to_half(high).bits) << 16;
#endif
}
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ u32 pack2(float low, float high, bfloat16_t) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
#endif

// 2 ulp (PTX ISA, ex2.approx.ftz.f32); results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Absolute error 2^-22 in (0.5, 2), 2 ulp elsewhere (PTX ISA, lg2.approx.ftz.f32).
__device__ __forceinline__ float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ u32 shared_address(const void* shared) {
  return static_cast<u32>(__cvta_generic_to_shared(shared));
}

#if __CUDA_ARCH__ >= 750
// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a * b; a [16, 16] by rows, b [16, 8] by columns.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], half_t) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // Turing: the same in two halves of k
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}
#endif
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bfloat16_t) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// 16 bytes from global to shared memory, asynchronously; zeros where not `valid` (the address is then not read, but must be
// aligned). Turing and older copy through registers: the wait is then a formality.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `kGroupsLeft` of the thread's committed groups are under way.
template <int kGroupsLeft>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

#endif

}  // namespace edgemm
