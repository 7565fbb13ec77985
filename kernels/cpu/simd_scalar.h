// Scalar: the vector interface of vector_math.h with one lane, for any processor. MulAdd rounds
// twice.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"

namespace plumbline {

struct Scalar {
  using F32 = float;
  static constexpr int kWidth = 1;

  static F32 Set(float x) { return x; }
  static F32 Load(const float* p) { return *p; }
  static F32 LoadFirst(const float* p, int) { return *p; }
  static void Store(float* p, F32 x) { *p = x; }
  static void Stream(float* p, F32 x) { *p = x; }
  static void StoreFirst(float* p, F32 x, int) { *p = x; }

  static F32 LoadBf16(const uint16_t* p) { return ToFloat(Bf16{*p}); }
  static F32 LoadBf16First(const uint16_t* p, int) { return ToFloat(Bf16{*p}); }
  static void StoreBf16(uint16_t* p, F32 x) { *p = FromFloat<Bf16>(x).bits; }
  static void StoreBf16First(uint16_t* p, F32 x, int) { *p = FromFloat<Bf16>(x).bits; }
  static F32 LoadF16(const uint16_t* p) { return ToFloat(F16{*p}); }
  static F32 LoadF16First(const uint16_t* p, int) { return ToFloat(F16{*p}); }
  static void StoreF16(uint16_t* p, F32 x) { *p = FromFloat<F16>(x).bits; }
  static void StoreF16First(uint16_t* p, F32 x, int) { *p = FromFloat<F16>(x).bits; }

  static F32 Add(F32 a, F32 b) { return a + b; }
  static F32 Sub(F32 a, F32 b) { return a - b; }
  static F32 Mul(F32 a, F32 b) { return a * b; }
  static F32 Div(F32 a, F32 b) { return a / b; }
  static F32 MulAdd(F32 a, F32 b, F32 c) { return a * b + c; }
  static F32 Max(F32 a, F32 b) { return a > b ? a : b; }
  static F32 Min(F32 a, F32 b) { return a < b ? a : b; }
  static F32 Sqrt(F32 a) { return std::sqrt(a); }
  static F32 Round(F32 a) { return std::nearbyint(a); }
  static F32 PowerOfTwo(F32 n) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
  }
  // x 2^n, n whole and not below -150: in two factors, so that a subnormal result is rounded once.
  static F32 Scale(F32 x, F32 n) {
    const F32 half = Round(Mul(n, Set(0.5f)));
    return Mul(Mul(x, PowerOfTwo(half)), PowerOfTwo(Sub(n, half)));
  }

  static float Sum(F32 a) { return a; }
  static float Maximum(F32 a) { return a; }
};

}  // namespace plumbline
