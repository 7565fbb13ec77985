// The matrix products of attention over a bf16 cache on AMX tiles. The softmax weights go in as the sum of two bf16
// numbers, which keeps 16 of their bits.
#pragma once

#include "kernels/cpu/bf16_attention_avx512.h"
#include "kernels/cpu/bf16_gemm_amx.h"

namespace plumbline {
namespace {

struct AmxProducts : Bf16Scores<AmxBf16> {
  static constexpr int kWeightStride = kSegment + 32;
  static uint16_t* Weights(const AttentionScratch& s) { return reinterpret_cast<uint16_t*>(s.weights); }

  static void Begin() { AmxBf16::Begin(); }
  static void End() { AmxBf16::End(); }

  static void PackQueries(const AttentionTask& task, const AttentionScratch& s) {
    Bf16Scores<AmxBf16>::PackQueries(task, s);
    for (int row = task.num_tokens * task.group; row < s.rows; ++row) {
      for (int key = 0; key < kSegment; key += 16) StoreWeights(s, row, key, Simd::Zero());
    }
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
    AmxBf16::Multiply({.a = Weights(s), .a_stride = kWeightStride, .b = reinterpret_cast<const uint32_t*>(s.values),
                       .b_panel = kSegment * 8, .c = s.partial, .c_stride = s.value_stride(), .m = s.rows,
                       .n = RoundUp(task.head_dim, 16), .k = num_keys},
                      {.a = Weights(s) + static_cast<int64_t>(s.rows) * kWeightStride});
  }
};

}  // namespace
}  // namespace plumbline
