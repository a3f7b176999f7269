// Attention with head dimension 80: one source a dimension, so that a device compiles only what a model uses.
#include "attention.cuh"

EDGEMM_ATTENTION_HEAD_DIM(80)
