// The matrix products of attention over a bf16 cache with bf16 instructions: exact products, f32 sums.
#pragma once

#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/bf16_gemm_avx512.h"
#include "kernels/cpu/lanes16_avx512.h"

namespace plumbline {
namespace {

inline __mmask16 FirstMask(int n) { return static_cast<__mmask16>((1u << n) - 1); }

template <typename Gemm>  // Avx512Bf16 or AmxBf16
struct Bf16Scores {
  using Simd = Avx512Lanes;

  static uint16_t* Queries(const AttentionScratch& s) { return reinterpret_cast<uint16_t*>(s.queries); }

  static void PackQueries(const AttentionTask& task, const AttentionScratch& s) {
    const int num_rows = task.num_tokens * task.group;
    for (int row = 0; row < s.rows; ++row) {
      const Bf16* from = static_cast<const Bf16*>(task.q) + row / task.group * task.q_stride +
                         row % task.group * task.head_dim;
      uint16_t* to = Queries(s) + row * s.value_stride();
      for (int i = 0; i < s.dim; i += 16) {
        const int n = row < num_rows ? Most(0, Least(16, task.head_dim - i)) : 0;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_maskz_loadu_epi16(FirstMask(n), from + i));
      }
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
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) lanes[j] = Simd::LoadN(from + j * num_pairs + i, n);
        Simd::Transpose(lanes);
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) Simd::Store(to + 16 * (i + j), lanes[j]);
      }
    }
  }
  static void Scores(const AttentionTask&, const AttentionScratch& s, const RowTile& tile) {
    Gemm::Multiply({.a = Queries(s) + tile.first * s.value_stride(), .a_stride = s.value_stride(),
                    .b = reinterpret_cast<const uint32_t*>(s.keys), .b_panel = 8 * s.dim, .c = s.scores,
                    .c_stride = s.score_stride(), .m = RoundUp(tile.count, Gemm::kRowMultiple), .n = tile.num_keys,
                    .k = s.dim});
  }
};

// AVX-512: the second product in f32, where the softmax weights keep all their bits and one multiply-add is one key.
struct Avx512Products : F32Products<Avx512Lanes, Bf16> {
  using ByBf16 = Bf16Scores<Avx512Bf16>;
  static void PackQueries(const AttentionTask& task, const AttentionScratch& s) { ByBf16::PackQueries(task, s); }
  static void PackKeys(const AttentionTask& task, const AttentionScratch& s, const int32_t* blocks, int num_keys) {
    ByBf16::PackKeys(task, s, blocks, num_keys);
  }
  static void Scores(const AttentionTask& task, const AttentionScratch& s, const RowTile& tile) {
    ByBf16::Scores(task, s, tile);
  }
};

}  // namespace
}  // namespace plumbline
