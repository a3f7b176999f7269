// Attention for TensorRT's ahead-of-time plugins, which launch a kernel with plain arguments: the inputs' addresses, whole numbers,
// the outputs' addresses. The plan holds the PTX, so that it runs where there is no Python.
#pragma once
#include "attention.cuh"

namespace edgemm {

// Mirrored by edgemm/engine/tensorrt/plugins/aot.py, argument for argument.
struct AotAttention {
  const void* q;  // [batch, heads, q_len, D], contiguous, as are the others
  const void* k;
  const void* v;
  int batch, heads, kv_heads, q_len, kv_len;
  int window_before, window_after, align_end;
  int scale_log2_bits;  // the float's bits: TensorRT hands over whole numbers only
  void* out;
};

__device__ __forceinline__ float float_of_bits(int bits) {
  union {
    int i;
    float f;
  } both{bits};
  return both.f;
}

template <class T, int D>
__device__ __forceinline__ void attend_flat(const AotAttention& a) {
  AttentionParams p{};
  p.q = a.q, p.k = a.k, p.v = a.v, p.out = a.out;
  const i64 row = D, q_head = row * a.q_len, kv_head = row * a.kv_len;
  p.q_strides[0] = p.out_strides[0] = q_head * a.heads;
  p.q_strides[1] = p.out_strides[1] = q_head;
  p.k_strides[0] = p.v_strides[0] = kv_head * a.kv_heads;
  p.k_strides[1] = p.v_strides[1] = kv_head;
  p.q_strides[2] = p.out_strides[2] = p.k_strides[2] = p.v_strides[2] = row;
  p.batch = a.batch, p.heads = a.heads, p.kv_heads = a.kv_heads, p.q_len = a.q_len, p.kv_len = a.kv_len;
  p.splits = 1;
  p.align_end = a.align_end, p.window_before = a.window_before, p.window_after = a.window_after;
  p.head_dim = D;
  p.scale_log2 = float_of_bits(a.scale_log2_bits);
  attend_tiles<T, D, false>(p);
}

}  // namespace edgemm

#if defined(EDGEMM_EMULATOR)
#define EDGEMM_AOT_ATTENTION(type_name, T, D)                                                                       \
  EDGEMM_KERNEL(edgemm_attention_aot_##type_name##_d##D, edgemm::AotAttention, edgemm::Tile<D>::kThreads) {         \
    edgemm::attend_flat<T, D>(p);                                                                                   \
  }
#else
#define EDGEMM_AOT_ATTENTION(type_name, T, D)                                                                       \
  extern "C" __global__ void __launch_bounds__(edgemm::Tile<D>::kThreads) edgemm_attention_aot_##type_name##_d##D(  \
      const void* q, const void* k, const void* v, int batch, int heads, int kv_heads, int q_len, int kv_len,       \
      int window_before, int window_after, int align_end, int scale_log2_bits, void* out) {                         \
    edgemm::attend_flat<T, D>({q, k, v, batch, heads, kv_heads, q_len, kv_len, window_before, window_after,         \
                               align_end, scale_log2_bits, out});                                                   \
  }
#endif

// bfloat16 in the tensor cores came with sm_80.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define EDGEMM_AOT_HEAD_DIM(D)                \
  EDGEMM_AOT_ATTENTION(f16, edgemm::half_t, D) \
  EDGEMM_AOT_ATTENTION(bf16, edgemm::bfloat16_t, D)
#else
#define EDGEMM_AOT_HEAD_DIM(D) EDGEMM_AOT_ATTENTION(f16, edgemm::half_t, D)
#endif
