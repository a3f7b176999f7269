// Attention: the kernels that serve every head dimension. Those made for one are in attention_d<D>.cu.
#include "attention.cuh"

EDGEMM_KERNEL(edgemm_attention_combine_f16, edgemm::AttentionParams, 128) { edgemm::combine_splits<edgemm::half_t>(p); }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
EDGEMM_KERNEL(edgemm_attention_combine_bf16, edgemm::AttentionParams, 128) { edgemm::combine_splits<edgemm::bfloat16_t>(p); }
#endif
EDGEMM_KERNEL(edgemm_attention_ring_append, edgemm::RingAppendParams, 256) { edgemm::ring_append(p); }
