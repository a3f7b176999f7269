// CUDA C++ on a CPU: include this instead of the CUDA headers, and compile the same .cu with g++ or clang++.
//
// It holds the vocabulary of a kernel: qualifiers, builtin variables, vector types, barriers, warp collectives, atomics and
// intrinsics. Tensor core and asynchronous copy instructions are in cuda_emulator_ptx.h. README.md says what is checked and what
// is not. The groups follow the chapter
// "C++ Language Extensions" of the CUDA C++ Programming Guide.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "float16.h"
#include "runtime.h"

// ---- qualifiers ------------------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __restrict__ __restrict
// Static __shared__ variables could be neither poisoned nor told apart between blocks: kernels use the dynamic array.
#define __shared__ static_assert(false, "the emulator knows dynamic shared memory only: CUDA_EMULATOR_DYNAMIC_SHARED(name)");
#define CUDA_EMULATOR_DYNAMIC_SHARED(name) unsigned char* const name = ::cuda_emulator::dynamic_shared(nullptr)

// Defines the kernel `name`, which takes one `Params` struct by value as `parameter`; the body follows.
#define CUDA_EMULATOR_KERNEL(name, Params, parameter, threads)                                                          \
  static void name(const Params parameter);                                                                             \
  static const ::cuda_emulator::Kernel name##_registered(                                                               \
      #name, sizeof(Params), threads, [](const void* bytes) { name(*static_cast<const Params*>(bytes)); });             \
  static void name(const Params parameter)

// ---- vector types and builtin variables ------------------------------------------------------------------------------------

#define CUDA_EMULATOR_VECTOR(type, base, alignment2, alignment4)                                                       \
  struct __attribute__((aligned(alignment2))) type##2 { base x, y; };                                                  \
  struct type##3 { base x, y, z; };                                                                                    \
  struct __attribute__((aligned(alignment4))) type##4 { base x, y, z, w; };                                            \
  static inline type##2 make_##type##2(base x, base y) { return {x, y}; }                                              \
  static inline type##3 make_##type##3(base x, base y, base z) { return {x, y, z}; }                                   \
  static inline type##4 make_##type##4(base x, base y, base z, base w) { return {x, y, z, w}; }

CUDA_EMULATOR_VECTOR(char, signed char, 2, 4)
CUDA_EMULATOR_VECTOR(uchar, unsigned char, 2, 4)
CUDA_EMULATOR_VECTOR(short, short, 4, 8)
CUDA_EMULATOR_VECTOR(ushort, unsigned short, 4, 8)
CUDA_EMULATOR_VECTOR(int, int, 8, 16)
CUDA_EMULATOR_VECTOR(uint, unsigned, 8, 16)
CUDA_EMULATOR_VECTOR(float, float, 8, 16)
#undef CUDA_EMULATOR_VECTOR

#define threadIdx (::cuda_emulator::current->thread_index)
#define blockIdx (::cuda_emulator::current->block_index)
#define blockDim (::cuda_emulator::current->block_size)
#define gridDim (::cuda_emulator::current->grid_size)
static constexpr int warpSize = 32;

// ---- barriers and fences ---------------------------------------------------------------------------------------------------

#define __syncthreads() ((void)::cuda_emulator::block_barrier(__FILE__, __LINE__, ::cuda_emulator::Vote::kNone, 0))
#define __syncthreads_and(p) ::cuda_emulator::block_barrier(__FILE__, __LINE__, ::cuda_emulator::Vote::kAnd, (p) != 0)
#define __syncthreads_or(p) ::cuda_emulator::block_barrier(__FILE__, __LINE__, ::cuda_emulator::Vote::kOr, (p) != 0)
#define __syncthreads_count(p) ::cuda_emulator::block_barrier(__FILE__, __LINE__, ::cuda_emulator::Vote::kCount, (p) != 0)

static inline void __syncwarp(unsigned mask = 0xffffffffu) { ::cuda_emulator::warp_barrier(mask); }
static inline void __threadfence_block() { ::cuda_emulator::fence(); }
static inline void __threadfence() { ::cuda_emulator::fence(); }
static inline void __threadfence_system() { ::cuda_emulator::fence(); }

// ---- warp collectives ------------------------------------------------------------------------------------------------------

namespace cuda_emulator {

inline unsigned lane() { return current->linear & 31u; }

template <class T>
inline T shuffle_value(unsigned mask, const char* name, T value, unsigned source) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(mask, name, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace cuda_emulator

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = ::cuda_emulator::lane(), segment = lane & ~static_cast<unsigned>(width - 1);
  return ::cuda_emulator::shuffle_value(mask, "__shfl_sync", value, segment + (static_cast<unsigned>(source) & (width - 1)));
}

template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = ::cuda_emulator::lane(), within = lane & (width - 1);
  return ::cuda_emulator::shuffle_value(mask, "__shfl_up_sync", value, within >= delta ? lane - delta : lane);
}

template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = ::cuda_emulator::lane(), within = lane & (width - 1);
  const bool inside = within + delta < static_cast<unsigned>(width);
  return ::cuda_emulator::shuffle_value(mask, "__shfl_down_sync", value, inside ? lane + delta : lane);
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = ::cuda_emulator::lane(), other = lane ^ static_cast<unsigned>(bits);
  const bool inside = other / static_cast<unsigned>(width) <= lane / static_cast<unsigned>(width);
  return ::cuda_emulator::shuffle_value(mask, "__shfl_xor_sync", value, inside ? other : lane);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return ::cuda_emulator::reduce(mask, "__ballot_sync", ::cuda_emulator::Reduce::kBallot, predicate != 0);
}
static inline int __any_sync(unsigned mask, int predicate) {
  return ::cuda_emulator::reduce(mask, "__any_sync", ::cuda_emulator::Reduce::kOr, predicate != 0) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
  return ::cuda_emulator::reduce(mask, "__all_sync", ::cuda_emulator::Reduce::kAnd, predicate != 0) != 0;
}
static inline unsigned __match_any_sync(unsigned mask, unsigned value) { return ::cuda_emulator::match_any(mask, value); }

#define CUDA_EMULATOR_REDUCE(name, type, operation)                                                                     \
  static inline type name(unsigned mask, type value) {                                                                  \
    return static_cast<type>(::cuda_emulator::reduce(mask, #name, ::cuda_emulator::Reduce::operation,                   \
                                                     static_cast<std::uint32_t>(value)));                               \
  }
CUDA_EMULATOR_REDUCE(__reduce_add_sync, int, kAddInt)
CUDA_EMULATOR_REDUCE(__reduce_add_sync, unsigned, kAddInt)
CUDA_EMULATOR_REDUCE(__reduce_min_sync, int, kMinInt)
CUDA_EMULATOR_REDUCE(__reduce_min_sync, unsigned, kMinUnsigned)
CUDA_EMULATOR_REDUCE(__reduce_max_sync, int, kMaxInt)
CUDA_EMULATOR_REDUCE(__reduce_max_sync, unsigned, kMaxUnsigned)
CUDA_EMULATOR_REDUCE(__reduce_and_sync, unsigned, kAnd)
CUDA_EMULATOR_REDUCE(__reduce_or_sync, unsigned, kOr)
CUDA_EMULATOR_REDUCE(__reduce_xor_sync, unsigned, kXor)
#undef CUDA_EMULATOR_REDUCE

// ---- atomics: relaxed, as on the device -------- ----------------------------------------------------------------------------

template <class T, class Update>
static inline T cuda_emulator_atomic(T* address, Update update) {
  T old, next;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do next = update(old);
  while (!__atomic_compare_exchange(address, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
template <class T>
static inline T atomicAdd(T* address, std::common_type_t<T> value) {
  return cuda_emulator_atomic(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
static inline T atomicMin(T* address, std::common_type_t<T> value) {
  return cuda_emulator_atomic(address, [=](T old) { return old < value ? old : value; });
}
template <class T>
static inline T atomicMax(T* address, std::common_type_t<T> value) {
  return cuda_emulator_atomic(address, [=](T old) { return old > value ? old : value; });
}
template <class T>
static inline T atomicExch(T* address, std::common_type_t<T> value) {
  return cuda_emulator_atomic(address, [=](T) { return value; });
}
template <class T>
static inline T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return cuda_emulator_atomic(address, [=](T old) { return old == expected ? value : old; });
}
template <class T>
static inline T atomicOr(T* address, std::common_type_t<T> value) {
  return cuda_emulator_atomic(address, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
static inline T atomicAnd(T* address, std::common_type_t<T> value) {
  return cuda_emulator_atomic(address, [=](T old) { return static_cast<T>(old & value); });
}
// ((old >= value) ? 0 : old + 1)
static inline unsigned atomicInc(unsigned* address, unsigned value) {
  return cuda_emulator_atomic(address, [=](unsigned old) { return old >= value ? 0u : old + 1u; });
}

// ---- intrinsics of the CUDA Math API ---------------------------------------------------------------------------------------
// The fast forms are computed exactly here: tests allow for the device's larger error by tolerance, not by imitation.

using std::isinf;
using std::isnan;

template <class T>
static inline T __ldg(const T* address) { return *address; }
template <class T>
static inline T __ldcs(const T* address) { return *address; }

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

// glibc declares some of these names itself, hence macros.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// volatile keeps the compiler from fusing what the _rn forms promise to keep apart
static inline float __fmul_rn(float a, float b) { volatile float r = a * b; return r; }
static inline float __fadd_rn(float a, float b) { volatile float r = a + b; return r; }
static inline float __fsub_rn(float a, float b) { volatile float r = a - b; return r; }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN gives 0

// Out-of-range values saturate and NaN gives 0, as cvt.rni.s32.f32 does.
static inline int cuda_emulator_to_int(float rounded) {
  if (rounded != rounded) return 0;
  if (rounded >= 2147483648.0f) return INT32_MAX;
  if (rounded < -2147483648.0f) return INT32_MIN;
  return static_cast<int>(rounded);
}
static inline int __float2int_rn(float x) { return cuda_emulator_to_int(nearbyintf(x)); }
static inline int __float2int_rd(float x) { return cuda_emulator_to_int(floorf(x)); }
static inline int __float2int_ru(float x) { return cuda_emulator_to_int(ceilf(x)); }
static inline int __float2int_rz(float x) { return cuda_emulator_to_int(truncf(x)); }

static inline int __float_as_int(float x) { return static_cast<int>(::cuda_emulator::float_bits(x)); }
static inline unsigned __float_as_uint(float x) { return ::cuda_emulator::float_bits(x); }
static inline float __int_as_float(int x) { return ::cuda_emulator::bits_float(static_cast<unsigned>(x)); }
static inline float __uint_as_float(unsigned x) { return ::cuda_emulator::bits_float(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
// prmt.b32 in its default mode: selector nibbles pick bytes of the eight in b:a, bit 3 replicates the sign
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i) & 15u, byte = bytes >> (8 * (pick & 7u)) & 0xffu;
    result |= (pick & 8u ? (byte & 0x80u ? 0xffu : 0u) : byte) << (8 * i);
  }
  return result;
}
static inline int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);
  for (int i = 0; i < 4; ++i)
    sum += static_cast<unsigned>(static_cast<std::int8_t>(a >> (8 * i)) * static_cast<std::int8_t>(b >> (8 * i)));
  return static_cast<int>(sum);
}
