// The matrix products of attention over a bf16 cache with bf16 instructions: exact products, f32 sums. The softmax
// weights go in as the sum of two bf16 numbers, which keeps 16 of their bits.
#pragma once

#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/bf16_gemm_avx512.h"
#include "kernels/cpu/lanes16_avx512.h"

namespace plumbline {
namespace {

template <typename Gemm>  // Avx512Bf16 or AmxBf16
struct Bf16Products {
  using Simd = Avx512Lanes;
  static constexpr int kKeyMultiple = 32;
  static void Begin() { Gemm::Begin(); }
  static void End() { Gemm::End(); }

  static __mmask16 FirstMask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static uint16_t* Queries(const AttentionScratch& s) { return reinterpret_cast<uint16_t*>(s.queries); }
  static uint16_t* Weights(const AttentionScratch& s) { return reinterpret_cast<uint16_t*>(s.weights); }
  static constexpr int kWeightStride = kSegment + 32;

  static void PackQueries(const AttentionTask& task, const AttentionScratch& s) {
    const int num_rows = task.num_tokens * task.group;
    for (int row = 0; row < s.rows; ++row) {
      const Bf16* from = static_cast<const Bf16*>(task.q) + row / task.group * task.token_stride +
                         row % task.group * task.head_dim;
      uint16_t* to = Queries(s) + row * s.value_stride();
      for (int i = 0; i < s.dim; i += 16) {
        const int n = row < num_rows ? Most(0, Least(16, task.head_dim - i)) : 0;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_maskz_loadu_epi16(FirstMask(n), from + i));
      }
    }
    for (int row = num_rows; row < s.rows; ++row) {
      for (int key = 0; key < kSegment; key += 16) StoreWeights(s, row, key, Simd::Zero());
    }
  }
  // Panels of 16 keys: the pairs (2i, 2i + 1) of a key are one dword, transposed like f32.
  static void PackKeys(const AttentionTask& task, const AttentionScratch& s, const int32_t* blocks, int num_keys) {
    const int num_pairs = task.head_dim / 2;
    for (int key = 0; key < num_keys; key += 16) {
      const float* from = reinterpret_cast<const float*>(CacheRow<Bf16>(task, task.k_cache, blocks, key));
      float* to = s.keys + static_cast<int64_t>(key) * s.dim / 2;
      for (int i = 0; i < s.dim / 2; i += 16) {
        const int n = Most(0, Least(16, num_pairs - i));
        typename Simd::F lanes[16];
        for (int j = 0; j < 16; ++j) lanes[j] = Simd::LoadN(from + j * num_pairs + i, n);
        Simd::Transpose(lanes);
        for (int j = 0; j < 16; ++j) Simd::Store(to + 16 * (i + j), lanes[j]);
      }
    }
  }
  static void Scores(const AttentionTask&, const AttentionScratch& s, int num_keys) {
    Gemm::Multiply({.a = Queries(s), .a_low = nullptr, .a_stride = s.value_stride(),
                    .b = reinterpret_cast<const uint32_t*>(s.keys), .b_panel = 8 * s.dim, .c = s.scores,
                    .c_stride = s.score_stride(), .m = s.rows, .n = num_keys, .k = s.dim});
  }
  // Panels of 16 columns; keys 2l and 2l + 1 share a dword. Zero from num_valid on.
  static void PackValues(const AttentionTask& task, const AttentionScratch& s, const int32_t* blocks, int num_keys,
                         int num_valid) {
    uint32_t* panels = reinterpret_cast<uint32_t*>(s.values);
    for (int key = 0; key < num_keys; key += 2) {
      const Bf16* even = CacheRow<Bf16>(task, task.v_cache, blocks, key);
      const Bf16* odd = even + task.head_dim;
      for (int i = 0; i < task.head_dim; i += 16) {
        const __mmask16 mask = FirstMask(Least(16, task.head_dim - i));
        const __mmask16 even_mask = key < num_valid ? mask : 0, odd_mask = key + 1 < num_valid ? mask : 0;
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even_mask, even + i));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd_mask, odd + i));
        _mm512_storeu_si512(panels + i / 16 * kSegment * 8 + key * 8,
                            _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }
  static void StoreWeights(const AttentionScratch& s, int row, int key, typename Simd::F p) {
    uint16_t* to = Weights(s) + static_cast<int64_t>(row) * kWeightStride + key;
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(p);
    const __m512 rounded = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + static_cast<int64_t>(s.rows) * kWeightStride),
                        (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(p, rounded)));
  }
  static void WeightedValues(const AttentionTask& task, const AttentionScratch& s, int num_keys) {
    Gemm::Multiply({.a = Weights(s), .a_low = Weights(s) + static_cast<int64_t>(s.rows) * kWeightStride,
                    .a_stride = kWeightStride, .b = reinterpret_cast<const uint32_t*>(s.values),
                    .b_panel = kSegment * 8, .c = s.partial, .c_stride = s.value_stride(), .m = s.rows,
                    .n = RoundUp(task.head_dim, 16), .k = num_keys});
  }
};

}  // namespace
}  // namespace plumbline
