// Avx2: the vector interface of vector_math.h with 8 lanes. Include from *_avx2.cc only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace plumbline {

struct Avx2 {
  using F32 = __m256;
  static constexpr int kWidth = 8;

  static F32 Set(float x) { return _mm256_set1_ps(x); }
  static F32 Load(const float* p) { return _mm256_loadu_ps(p); }
  static F32 LoadFirst(const float* p, int n) { return _mm256_maskload_ps(p, First(n)); }
  static void Store(float* p, F32 x) { _mm256_storeu_ps(p, x); }
  static void Stream(float* p, F32 x) { _mm256_stream_ps(p, x); }
  static void StoreFirst(float* p, F32 x, int n) { _mm256_maskstore_ps(p, First(n), x); }

  static F32 LoadBf16(const uint16_t* p) { return FromBf16(Load16(p)); }
  static F32 LoadBf16First(const uint16_t* p, int n) { return FromBf16(Load16First(p, n)); }
  static void StoreBf16(uint16_t* p, F32 x) { Store16(p, ToBf16(x)); }
  static void StoreBf16First(uint16_t* p, F32 x, int n) { Store16First(p, ToBf16(x), n); }
  static F32 LoadF16(const uint16_t* p) { return _mm256_cvtph_ps(Load16(p)); }
  static F32 LoadF16First(const uint16_t* p, int n) { return _mm256_cvtph_ps(Load16First(p, n)); }
  static void StoreF16(uint16_t* p, F32 x) { Store16(p, ToF16(x)); }
  static void StoreF16First(uint16_t* p, F32 x, int n) { Store16First(p, ToF16(x), n); }

  static F32 Add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
  static F32 Sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
  static F32 Mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
  static F32 Div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
  static F32 MulAdd(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
  static F32 Max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
  static F32 Min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
  static F32 Sqrt(F32 a) { return _mm256_sqrt_ps(a); }
  static F32 Round(F32 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F32 PowerOfTwo(F32 n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  // x 2^n, n whole and not below -150: in two factors, so that a subnormal result is rounded once.
  static F32 Scale(F32 x, F32 n) {
    const F32 half = Round(Mul(n, Set(0.5f)));
    return Mul(Mul(x, PowerOfTwo(half)), PowerOfTwo(Sub(n, half)));
  }

  static float Sum(F32 a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float Maximum(F32 a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

 private:
  static __m256i First(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m128i Load16(const uint16_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static __m128i Load16First(const uint16_t* p, int n) {
    alignas(16) uint16_t lanes[8] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return Load16(lanes);
  }
  static void Store16(uint16_t* p, __m128i x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x);
  }
  static void Store16First(uint16_t* p, __m128i x, int n) {
    alignas(16) uint16_t lanes[8];
    Store16(lanes, x);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static F32 FromBf16(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static __m128i ToBf16(F32 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  }
  static __m128i ToF16(F32 x) {
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

}  // namespace plumbline
