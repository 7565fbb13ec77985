// The products of the chunked delta rule on AMX tiles. Every operand is the sum of two bf16 numbers (16 bits of it); the
// product of the two small parts is left out. Sums and the state stay f32.
#pragma once

#include "kernels/cpu/bf16_gemm_amx.h"
#include "kernels/cpu/delta_net_kernel.h"
#include "kernels/cpu/lanes16_avx512.h"

namespace plumbline {
namespace {

// Two bf16 matrices of the same layout: the rounded values, and what that rounding lost.
template <typename T>
struct Split {
  T* high;
  T* low;
};

struct AmxChunkProducts {
  static constexpr bool kTakesSteps = true;
  using Simd = Avx512Lanes;

  // In the task's scratch, behind DeltaNetScratch.
  struct Scratch {
    Scratch(float* memory, int key_dim, int value_dim)
        : keys(RoundUp(key_dim, 32)), padded_keys(RoundUp(key_dim, 16)), values(RoundUp(value_dim, 16)) {
      float* at = memory;
      const auto take = [&]<typename T>(Split<T>& split, int64_t num_bf16) {
        split.high = reinterpret_cast<T*>(at);
        at += RoundUp(num_bf16 / 2, 16);
        split.low = reinterpret_cast<T*>(at);
        at += RoundUp(num_bf16 / 2, 16);
      };
      take(q, kChunk * keys);
      take(k, kChunk * keys);
      take(k_transposed, int64_t{keys} * kChunk);
      take(weights, kChunk * kChunk);
      take(k_panels, kChunk * keys);
      take(state_panels, keys * values);
      take(x_panels, kChunk * values);
      num_floats = at - memory;
    }
    int keys, padded_keys, values;            // padded P (to 32 and 16) and Q
    Split<uint16_t> q, k;                     // [kChunk, keys]
    Split<uint16_t> k_transposed;             // [keys, kChunk]
    Split<uint16_t> weights;                  // [kChunk, kChunk]
    Split<uint32_t> k_panels;                 // K^T in panels of 16 rows of K
    Split<uint32_t> state_panels, x_panels;   // S and x in panels of 16 columns
    int64_t num_floats;
  };

  static int64_t ScratchFloats(int key_dim, int value_dim, int num_heads) {
    return DeltaNetScratchFloats(key_dim, value_dim, num_heads) + Scratch(nullptr, key_dim, value_dim).num_floats;
  }
  static Scratch Behind(const DeltaNetTask& task, const DeltaNetScratch& s) {
    return Scratch(task.scratch + s.num_floats, task.key_dim, task.value_dim);
  }

  static void StoreWeights(const DeltaNetTask& task, const DeltaNetScratch& s, int row, int column, __m512 lanes) {
    SplitLanes(Behind(task, s).weights, row * kChunk + column, lanes);
  }
  static void Begin() { AmxBf16::Begin(); }
  static void End() { AmxBf16::End(); }

  template <typename Side>
  static void Prepare(const DeltaNetTask& task, const DeltaNetScratch& s, int count, Side& side) {
    const Scratch split = Behind(task, s);
    const int rows = RoundUp(count, 16);
    const float scale = 1.0f / sqrtf(static_cast<float>(task.key_dim));
    for (int i = 0; i < rows; ++i) {
      const int64_t row = i * split.keys;
      if (i < count) {
        L2Normalize<Simd>(task.q + i * task.conv_stride, task.key_dim, scale,
                          [&](int p, __m512 lanes) { SplitLanes(split.q, row + p, lanes); });
        L2Normalize<Simd>(task.k + i * task.conv_stride, task.key_dim, 1.0f,
                          [&](int p, __m512 lanes) { SplitLanes(split.k, row + p, lanes); });
      }
      for (int p = i < count ? RoundUp(task.key_dim, 16) : 0; p < split.keys; p += 16) {
        SplitLanes(split.q, row + p, _mm512_setzero_ps());
        SplitLanes(split.k, row + p, _mm512_setzero_ps());
      }
    }
    TransposeKeys({split.k.high, split.k_panels.high, split.k_transposed.high}, split.keys, rows);
    TransposeKeys({split.k.low, split.k_panels.low, split.k_transposed.low}, split.keys, rows);
    for (const bool is_key : {true, false}) {
      const Split<uint16_t>& a = is_key ? split.k : split.q;
      AmxBf16::Multiply({.a = a.high, .a_stride = split.keys, .b = split.k_panels.high, .b_panel = 8 * split.keys,
                         .c = is_key ? s.kk : s.qk, .c_stride = kChunkStride, .m = rows, .n = rows, .k = split.keys,
                         .c_is_lower = true},
                        {.a = a.low, .b = split.k_panels.low}, [&] { side.Step(); });
    }
  }

  template <typename Side>
  static void ReadState(const DeltaNetTask& task, const DeltaNetScratch& s, float* state, float decay, int count,
                        Side& side) {
    const Scratch split = Behind(task, s);
    const __m512 factor = _mm512_set1_ps(decay);
    SplitPanels(split.state_panels, 8 * split.keys, {task.key_dim, split.keys, split.values}, [&](int row, int column) {
      float* at = state + row * s.value_stride + column;
      const __m512 lanes = _mm512_loadu_ps(at);
      _mm512_storeu_ps(at, _mm512_mul_ps(factor, lanes));
      return lanes;
    });
    for (const bool is_key : {true, false}) {
      const Split<uint16_t>& a = is_key ? split.k : split.q;
      AmxBf16::Multiply({.a = a.high, .a_stride = split.keys, .b = split.state_panels.high,
                         .b_panel = 8 * split.keys, .c = is_key ? s.x : s.out, .c_stride = s.value_stride,
                         .m = RoundUp(count, 16), .n = split.values, .k = split.keys},
                        {.a = a.low, .b = split.state_panels.low}, [&] { side.Step(); });
    }
  }

  template <typename Side>
  static void AddValues(const DeltaNetTask& task, const DeltaNetScratch& s, int count, Side& side) {
    const Scratch split = Behind(task, s);
    const int rows = RoundUp(count, 16), depth = RoundUp(count, 32);
    for (int i = count; i < rows; ++i) {
      for (int j = 0; j < depth; j += 16) StoreWeights(task, s, i, j, _mm512_setzero_ps());
    }
    SplitPanels(split.x_panels, 8 * kChunk, {count, depth, split.values},
                [&](int row, int column) { return _mm512_loadu_ps(s.x + row * s.value_stride + column); });
    AmxBf16::Multiply({.a = split.weights.high, .a_stride = kChunk, .b = split.x_panels.high, .b_panel = 8 * kChunk,
                       .c = s.out, .c_stride = s.value_stride, .m = rows, .n = split.values, .k = depth,
                       .a_is_lower = true},
                      {.a = split.weights.low, .b = split.x_panels.low, .accumulate = true}, [&] { side.Step(); });
  }

  template <typename Side>
  static void UpdateState(const DeltaNetTask& task, const DeltaNetScratch& s, const float* factors, float* state, int count,
                          Side& side) {
    const Scratch split = Behind(task, s);
    const int depth = RoundUp(count, 32);
    SplitPanels(split.x_panels, 8 * kChunk, {count, depth, split.values}, [&](int row, int column) {
      return _mm512_mul_ps(_mm512_set1_ps(factors[row]), _mm512_loadu_ps(s.x + row * s.value_stride + column));
    });
    AmxBf16::Multiply({.a = split.k_transposed.high, .a_stride = kChunk, .b = split.x_panels.high,
                       .b_panel = 8 * kChunk, .c = state, .c_stride = s.value_stride, .m = split.padded_keys,
                       .n = split.values, .k = depth},
                      {.a = split.k_transposed.low, .b = split.x_panels.low, .accumulate = true}, [&] { side.Step(); });
  }

 private:
  static void SplitLanes(const Split<uint16_t>& split, int64_t to, __m512 lanes) {
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(lanes);
    const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(lanes, Widen(high)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(split.high + to), high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(split.low + to), low);
  }
  // Panels (Bf16Gemm::b) of a matrix: lanes(row, column) of `valid` rows, zeros up to `padded` rows.
  struct PanelSize {
    int valid, padded, columns;
  };
  template <typename Lanes>
  static void SplitPanels(const Split<uint32_t>& split, int64_t panel, const PanelSize& size, const Lanes& lanes) {
    for (int l = 0; l < size.padded; l += 2) {
      for (int c = 0; c < size.columns; c += 16) {
        const __m512 even = l < size.valid ? lanes(l, c) : _mm512_setzero_ps();
        const __m512 odd = l + 1 < size.valid ? lanes(l + 1, c) : _mm512_setzero_ps();
        const __m256i even_high = (__m256i)_mm512_cvtneps_pbh(even), odd_high = (__m256i)_mm512_cvtneps_pbh(odd);
        const int64_t at = c / 16 * panel + 8 * l;
        _mm512_storeu_si512(split.high + at, Pairs(even_high, odd_high));
        _mm512_storeu_si512(split.low + at, Pairs((__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(even, Widen(even_high))),
                                                  (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(odd, Widen(odd_high)))));
      }
    }
  }
  // Rows of k [rows, keys] as panels of K^T, and K^T, zero up to a multiple of 32 columns. keys: a multiple of 32.
  struct KeyForms {
    const uint16_t* k;
    uint32_t* panels;
    uint16_t* transposed;
  };
  static void TransposeKeys(const KeyForms& forms, int keys, int rows) {
    const int panel = 8 * keys;
    for (int i = 0; i < rows; i += 16) {
      for (int l = 0; l < keys; l += 32) {
        __m512 lanes[16];
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) lanes[j] = _mm512_loadu_ps(forms.k + (i + j) * keys + l);
        Simd::Transpose(lanes);
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) _mm512_storeu_ps(forms.panels + i / 16 * panel + (l / 2 + j) * 16, lanes[j]);
      }
    }
    // Of 32 dwords in two vectors, the lower halves or the upper.
    alignas(64) static constexpr uint16_t kLower[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                        32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    const __m512i lower = _mm512_load_si512(kLower), upper = _mm512_add_epi16(lower, _mm512_set1_epi16(1));
    for (int i = 0; i < rows; i += 32) {
      const uint32_t* pairs = forms.panels + i / 16 * panel;
      for (int l = 0; l < keys / 2; ++l) {
        const __m512i left = _mm512_loadu_si512(pairs + 16 * l);
        const __m512i right = i + 16 < rows ? _mm512_loadu_si512(pairs + panel + 16 * l) : _mm512_setzero_si512();
        uint16_t* to = forms.transposed + 2 * l * kChunk + i;
        _mm512_storeu_si512(to, _mm512_permutex2var_epi16(left, lower, right));
        _mm512_storeu_si512(to + kChunk, _mm512_permutex2var_epi16(left, upper, right));
      }
    }
  }
  static __m512 Widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static __m512i Pairs(__m256i even, __m256i odd) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
  }
};

}  // namespace
}  // namespace plumbline
