// Scalar conversions between f32 and the 16-bit types, round to nearest even. For files compiled for any x86-64; the
// vector headers have their own.
#pragma once

#include <cstdint>
#include <cstring>

namespace plumbline {

inline float Bf16ToF32(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline uint16_t F32ToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float F16ToF32(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
  const uint32_t magnitude = value & 0x7fff;
  float result;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    const uint32_t bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
    std::memcpy(&result, &bits, sizeof result);
    return result;
  }
  if (magnitude < 0x400) {  // zero, subnormal: a multiple of 2^-24
    result = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -result : result;
  }
  const uint32_t bits = sign | ((magnitude << 13) + (112u << 23));
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline uint16_t F32ToF16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (bits < 0x38800000) {                       // below 2^-14: a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    const float shifted = magnitude + 0.5f;      // the adder rounds at 2^-24
    std::memcpy(&bits, &shifted, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13));
}

}  // namespace plumbline
