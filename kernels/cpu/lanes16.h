// Lanes16<V>: sixteen f32 lanes, as 16 / V::kWidth vectors of a type of simd_*.h. Kernels over it have one order of adds
// for every width. Anonymous namespace: each file keeps its own instantiations, built with its own instructions.
#pragma once

#include <cstdint>

#include "kernels/cpu/vector_math.h"
#include "kernels/half.h"

namespace plumbline {
namespace {

template <typename V, int kParts>
struct LanesType {
  struct Type {
    typename V::F32 part[kParts];
  };
};
template <typename V>
struct LanesType<V, 1> {
  using Type = typename V::F32;
};

template <typename V>
struct Lanes16 {
  static constexpr int kParts = 16 / V::kWidth;
  using F = typename LanesType<V, kParts>::Type;

  // Shapes that fill the registers without spilling.
  static constexpr int kGemmRows = kParts == 16 ? 1 : 6;         // rows x vectors of a GEMM block
  static constexpr int kGemmVectors = kParts == 1 ? 4 : 1;
  static constexpr int kColumnVectors = kParts == 1 ? 4 : 1;     // of a column block of the delta rule's recurrence

  static F Zero() { return Set(0.0f); }
  static F Set(float x) {
    return Map([&](int) __attribute__((always_inline)) { return V::Set(x); });
  }
  static F Add(F a, F b) {
    return Map([&](int i) __attribute__((always_inline)) { return V::Add(At(a, i), At(b, i)); });
  }
  static F Sub(F a, F b) {
    return Map([&](int i) __attribute__((always_inline)) { return V::Sub(At(a, i), At(b, i)); });
  }
  static F Mul(F a, F b) {
    return Map([&](int i) __attribute__((always_inline)) { return V::Mul(At(a, i), At(b, i)); });
  }
  static F Div(F a, F b) {
    return Map([&](int i) __attribute__((always_inline)) { return V::Div(At(a, i), At(b, i)); });
  }
  static F Max(F a, F b) {  // b where either is NaN
    return Map([&](int i) __attribute__((always_inline)) { return V::Max(At(a, i), At(b, i)); });
  }
  static F Fma(F a, F b, F c) {  // a * b + c
    return Map([&](int i) __attribute__((always_inline)) { return V::MulAdd(At(a, i), At(b, i), At(c, i)); });
  }
  static F Exp(F a) {
    return Map([&](int i) __attribute__((always_inline)) { return plumbline::Exp<V>(At(a, i)); });
  }
  static F Sigmoid(F a) {
    return Map([&](int i) __attribute__((always_inline)) { return plumbline::Sigmoid<V>(At(a, i)); });
  }
  static F Silu(F a) {
    return Map([&](int i) __attribute__((always_inline)) { return plumbline::Silu<V>(At(a, i)); });
  }
  // Lane i with lane i + 8, then 4, 2, 1: the tree does not depend on the width.
  static float Sum(F a) {
    if constexpr (kParts == 1) {
      return V::Sum(a);
    } else {
      for (int half = kParts / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) a.part[i] = V::Add(a.part[i], a.part[i + half]);
      }
      return V::Sum(a.part[0]);
    }
  }
  static float MaxOf(F a) {
    if constexpr (kParts == 1) {
      return V::Maximum(a);
    } else {
      for (int i = 1; i < kParts; ++i) a.part[0] = V::Max(a.part[0], a.part[i]);
      return V::Maximum(a.part[0]);
    }
  }
  // Lanes below n of a, the others `fill`.
  static F FirstN(F a, int n, float fill) {
    alignas(64) float lanes[16];
    if (n >= 16) return a;
    Store(lanes, a);
    for (int i = n; i < 16; ++i) lanes[i] = fill;
    return Load(lanes);
  }

  static F Load(const float* p) {
    return Map([&](int i) __attribute__((always_inline)) { return V::Load(p + i * V::kWidth); });
  }
  static F Load(const Bf16* p) {
    return Map([&](int i) __attribute__((always_inline)) { return V::LoadBf16(Bits(p) + i * V::kWidth); });
  }
  static F Load(const F16* p) {
    return Map([&](int i) __attribute__((always_inline)) { return V::LoadF16(Bits(p) + i * V::kWidth); });
  }
  static void Store(float* p, F a) {
    for (int i = 0; i < kParts; ++i) V::Store(p + i * V::kWidth, At(a, i));
  }
  static void Store(Bf16* p, F a) {
    for (int i = 0; i < kParts; ++i) V::StoreBf16(Bits(p) + i * V::kWidth, At(a, i));
  }
  static void Store(F16* p, F a) {
    for (int i = 0; i < kParts; ++i) V::StoreF16(Bits(p) + i * V::kWidth, At(a, i));
  }

  // The first n lanes, 0 <= n <= 16, the others zero; memory past them is not touched.
  template <typename T>
  static F LoadN(const T* p, int n) {
    if (n == 16) return Load(p);
    if constexpr (kParts == 1) {
      return LoadFirst(p, n);
    } else {
      alignas(64) T lanes[16] = {};
      for (int i = 0; i < n; ++i) lanes[i] = p[i];
      return Load(lanes);
    }
  }
  template <typename T>
  static void StoreN(T* p, F a, int n) {
    if (n == 16) return Store(p, a);
    if constexpr (kParts == 1) {
      StoreFirst(p, a, n);
    } else {
      alignas(64) T lanes[16];
      Store(lanes, a);
      for (int i = 0; i < n; ++i) p[i] = lanes[i];
    }
  }
  // a rounded to T and back.
  static F Round(F a, float*) { return a; }
  template <typename T>
  static F Round(F a, T*) {
    alignas(64) T lanes[16];
    Store(lanes, a);
    return Load(lanes);
  }

  // rows[i] lane j <-> rows[j] lane i; lanes move as bits. Defined for each V in lanes16_*.h.
  static void Transpose(F rows[16]);

 private:
  template <typename Function>
  __attribute__((always_inline)) static F Map(Function function) {
    F result;
#pragma GCC unroll 16
    for (int i = 0; i < kParts; ++i) At(result, i) = function(i);
    return result;
  }
  template <typename G>
  __attribute__((always_inline)) static auto& At(G& a, [[maybe_unused]] int i) {
    if constexpr (kParts == 1) {
      return a;
    } else {
      return a.part[i];
    }
  }
  static const uint16_t* Bits(const Bf16* p) { return &p->bits; }
  static const uint16_t* Bits(const F16* p) { return &p->bits; }
  static uint16_t* Bits(Bf16* p) { return &p->bits; }
  static uint16_t* Bits(F16* p) { return &p->bits; }
  static F LoadFirst(const float* p, int n) { return V::LoadFirst(p, n); }
  static F LoadFirst(const Bf16* p, int n) { return V::LoadBf16First(Bits(p), n); }
  static F LoadFirst(const F16* p, int n) { return V::LoadF16First(Bits(p), n); }
  static void StoreFirst(float* p, F a, int n) { V::StoreFirst(p, a, n); }
  static void StoreFirst(Bf16* p, F a, int n) { V::StoreBf16First(Bits(p), a, n); }
  static void StoreFirst(F16* p, F a, int n) { V::StoreF16First(Bits(p), a, n); }
};

}  // namespace
}  // namespace plumbline
