// What the benchmarks are held against: a launch that does nothing, and a copy. And a delay, behind which rounds wait in the stream.
#include "edgemm_cuda.cuh"

struct Copy {
  const uint4* in;
  uint4* out;
  long long count;  // of 16 bytes; of clock cycles
};

EDGEMM_KERNEL(bench_nothing, Copy, 32) {}

EDGEMM_KERNEL(bench_delay, Copy, 32) {
#if !defined(EDGEMM_EMULATOR)  // which has no clock, and runs everything at once
  const long long start = clock64();
  while (clock64() - start < p.count) {
  }
#endif
}

EDGEMM_KERNEL(bench_copy, Copy, 256) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += step)
    p.out[i] = p.in[i];
}
