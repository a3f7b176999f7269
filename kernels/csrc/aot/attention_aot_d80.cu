// Ahead-of-time attention with head dimension 80.
#include "attention_aot.cuh"

EDGEMM_AOT_HEAD_DIM(80)
