// Ahead-of-time attention with head dimension 96.
#include "attention_aot.cuh"

EDGEMM_AOT_HEAD_DIM(96)
