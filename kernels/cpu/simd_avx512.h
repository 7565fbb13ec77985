// Avx512: the vector interface of vector_math.h with 16 lanes. Include from *_avx512.cc and
// *_amx.cc only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace plumbline {

struct Avx512 {
  using F32 = __m512;
  static constexpr int kWidth = 16;

  static F32 Set(float x) { return _mm512_set1_ps(x); }
  static F32 Load(const float* p) { return _mm512_loadu_ps(p); }
  static F32 LoadFirst(const float* p, int n) { return _mm512_maskz_loadu_ps(First(n), p); }
  static void Store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
  static void Stream(float* p, F32 x) { _mm512_stream_ps(p, x); }
  static void StoreFirst(float* p, F32 x, int n) { _mm512_mask_storeu_ps(p, First(n), x); }

  static F32 LoadBf16(const uint16_t* p) { return FromBf16(Load16(p)); }
  static F32 LoadBf16First(const uint16_t* p, int n) {
    return FromBf16(_mm256_maskz_loadu_epi16(First(n), p));
  }
  static void StoreBf16(uint16_t* p, F32 x) { Store16(p, ToBf16(x)); }
  static void StoreBf16(uint16_t* p, F32 a, F32 b) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b, a)); }
  static void StoreBf16First(uint16_t* p, F32 x, int n) {
    _mm256_mask_storeu_epi16(p, First(n), ToBf16(x));
  }
  static F32 LoadF16(const uint16_t* p) { return _mm512_cvtph_ps(Load16(p)); }
  static F32 LoadF16First(const uint16_t* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(First(n), p));
  }
  static void StoreF16(uint16_t* p, F32 x) { Store16(p, ToF16(x)); }
  static void StoreF16First(uint16_t* p, F32 x, int n) {
    _mm256_mask_storeu_epi16(p, First(n), ToF16(x));
  }

  static F32 Add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static F32 Sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static F32 Mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static F32 Div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  static F32 MulAdd(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  static F32 Max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  static F32 Min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
  static F32 Sqrt(F32 a) { return _mm512_sqrt_ps(a); }
  static F32 Round(F32 a) { return _mm512_roundscale_ps(a, 8); }
  static F32 Scale(F32 x, F32 n) { return _mm512_scalef_ps(x, n); }  // x 2^n, n whole

  static float Sum(F32 a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float Maximum(F32 a) { return _mm512_reduce_max_ps(a); }

 private:
  static __mmask16 First(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static __m256i Load16(const uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void Store16(uint16_t* p, __m256i x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  static F32 FromBf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  // Subnormals become zero, as the products of bf16 read them.
  static __m256i ToBf16(F32 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
  static __m256i ToF16(F32 x) {
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

}  // namespace plumbline
