// Ahead-of-time attention with head dimension 128.
#include "attention_aot.cuh"

EDGEMM_AOT_HEAD_DIM(128)
