// Tensor core and asynchronous copy instructions of PTX, with the operands of the instruction. The names in quotes are
// section titles of the PTX ISA (8.5), whose numbers change between versions.
#pragma once

#include "cuda_emulator.h"

namespace cuda_emulator {
namespace ptx {

inline MatrixRow matrix_row(const char* name, const void* address) {
  MatrixRow row;
  row.address = reinterpret_cast<std::uintptr_t>(address);
  if (row.address & 15u) fail("%s: the row address %p is not 16-byte aligned", name, address);
  const volatile std::uint64_t* words = static_cast<const volatile std::uint64_t*>(address);
  row.bytes[0] = words[0];  // the thread's own loads: seen by the sanitizers
  row.bytes[1] = words[1];
  return row;
}

// "Warp-level matrix load instruction: ldmatrix": lanes 8i..8i+7 give the row addresses of matrix i; lane l receives the elements 2(l%4), 2(l%4)+1 of row
// l/4, or with .trans of column l/4.
inline void ldmatrix_x4(std::uint32_t (&registers)[4], const void* row) {
  ldmatrix("ldmatrix.x4", matrix_row("ldmatrix.x4", row), registers, 4, false);
}
inline void ldmatrix_x4_trans(std::uint32_t (&registers)[4], const void* row) {
  ldmatrix("ldmatrix.x4.trans", matrix_row("ldmatrix.x4.trans", row), registers, 4, true);
}

// "Matrix Fragments for mma.m16n8k16 with floating point type" and "Matrix Fragments for mma.m16n8k32": D = A * B + D. The
// fragments' layouts are spelled out in runtime.cpp.
inline void mma_m16n8k16_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  mma(Format::kHalf, d, a, b);
}
inline void mma_m16n8k16_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  mma(Format::kBfloat16, d, a, b);
}
inline void mma_m16n8k32_s8(int (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  mma(Format::kInt8, d, a, b);
}

// "Data Movement and Conversion Instructions: cp.async": 16 bytes from global to shared; with source_bytes = 0 nothing is read and zeros are written. Until the
// thread waits for the group the destination holds NaN bytes.
inline void cp_async_16(void* destination, const void* source, int source_bytes) {
  if ((reinterpret_cast<std::uintptr_t>(destination) | reinterpret_cast<std::uintptr_t>(source)) & 15u)
    fail("cp.async: %p -> %p is not 16-byte aligned", source, destination);
  volatile std::uint64_t* to = static_cast<volatile std::uint64_t*>(destination);
  to[0] = ~std::uint64_t{0};  // the thread's own stores: seen by the sanitizers
  to[1] = ~std::uint64_t{0};
  if (source_bytes) {
    const volatile std::uint64_t* from = static_cast<const volatile std::uint64_t*>(source);
    (void)from[0];
    (void)from[1];
  }
  cp_async(destination, source, 16, source_bytes);
}

}  // namespace ptx
}  // namespace cuda_emulator
