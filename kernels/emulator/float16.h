// fp16 and bfloat16 as 16 bits, with the conversions of the hardware: exact upwards, round to nearest even downwards.
//
// Software only, so that every compiler and CPU gives the same bits. Formats: IEEE 754-2008 binary16, and the upper half of
// binary32 (PTX ISA, "Alternate Floating-Point Data Formats").
#pragma once

#include <cstdint>
#include <cstring>

namespace cuda_emulator {

inline std::uint32_t float_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
  if (rest >= 0x0400u) return bits_float(sign | ((rest << 13) + 0x38000000u));         // normal: exponent bias 15 -> 127
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;                         // subnormal, exact
  return sign ? -magnitude : magnitude;
}

inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = float_bits(value);
  const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return 0x7fffu;                                          // PTX cvt: the canonical NaN
  if (rest >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);      // >= 65520 rounds to infinity
  if (rest < 0x38800000u) {                                                        // below 2^-14: subnormal or zero
    const float scaled = bits_float(rest) * 0x1p24f;                               // exact, below 1024
    const std::uint32_t whole = static_cast<std::uint32_t>(scaled);
    const float remainder = scaled - static_cast<float>(whole);
    const bool up = remainder > 0.5f || (remainder == 0.5f && (whole & 1u));
    return static_cast<std::uint16_t>(sign | (whole + (up ? 1u : 0u)));
  }
  const std::uint32_t rounded = rest + 0x0fffu + (rest >> 13 & 1u);  // nearest even on the 13 bits that go
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float bfloat16_to_float(std::uint16_t value) { return bits_float(static_cast<std::uint32_t>(value) << 16); }

inline std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace cuda_emulator
