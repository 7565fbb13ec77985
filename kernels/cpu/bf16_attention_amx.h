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
  // The upper half of a float, and what that leaves of it.
  static void StoreWeights(const AttentionScratch& s, int row, int key, typename Simd::F p0, typename Simd::F p1) {
    uint16_t* to = Weights(s) + static_cast<int64_t>(row) * kWeightStride + key;
    const __m512i bits0 = _mm512_castps_si512(p0), bits1 = _mm512_castps_si512(p1);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    const __m512 rest0 = _mm512_sub_ps(p0, _mm512_castsi512_ps(_mm512_and_si512(bits0, upper)));
    const __m512 rest1 = _mm512_sub_ps(p1, _mm512_castsi512_ps(_mm512_and_si512(bits1, upper)));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(bits0, UpperHalves(), bits1));
    _mm512_storeu_si512(to + static_cast<int64_t>(kTileRows) * kWeightStride,
                        (__m512i)_mm512_cvtne2ps_pbh(rest1, rest0));
  }
  static void WeightedValues(const AttentionTask& task, const AttentionScratch& s, const RowTile& tile) {
    AmxBf16::Multiply({.a = Weights(s), .a_stride = kWeightStride, .b = reinterpret_cast<const uint32_t*>(s.values),
                       .b_panel = kSegment * 8, .c = s.partial, .c_stride = s.value_stride(),
                       .m = RoundUp(tile.count, 16), .n = RoundUp(task.head_dim, 16), .k = tile.num_keys},
                      {.a = Weights(s) + static_cast<int64_t>(kTileRows) * kWeightStride});
  }

 private:
  // Of the 64 halves of two vectors, the 32 odd ones.
  static __m512i UpperHalves() {
    alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_load_si512(kOdd);
  }
};

}  // namespace
}  // namespace plumbline
