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

class AmxChunkProducts {
  static constexpr int kHalf = kChunk / 2;
  using Simd = Avx512Lanes;

  // In the task's scratch, behind DeltaNetScratch.
  struct Scratch {
    Scratch(float* memory, int key_dim, int value_dim, int num_heads)
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
      take(solve_weights, kHalf * kHalf);
      take(k_panels, kChunk * keys);
      take(state_panels, int64_t{num_heads} * keys * values);
      take(x_panels, kChunk * values);
      for (float*& block : blocks) {
        block = at;
        at += kHalf * kHalf;
      }
      num_floats = at - memory;
    }
    int keys, padded_keys, values;            // padded P (to 32 and 16) and Q
    Split<uint16_t> q, k;                     // [kChunk, keys]
    Split<uint16_t> k_transposed;             // [keys, kChunk]
    Split<uint16_t> weights;                  // [kChunk, kChunk]
    Split<uint16_t> solve_weights;            // [kHalf, kHalf]: of s.weights, from the first half of rows to the second
    Split<uint32_t> k_panels;                 // K^T in panels of 16 rows of K
    Split<uint32_t> state_panels, x_panels;   // S of each head, and x, in panels of 16 columns
    float* blocks[2];                         // [kHalf, kHalf] of a product
    int64_t num_floats;
  };

 public:
  static constexpr bool kTakesSteps = true;
  static int64_t ScratchFloats(int key_dim, int value_dim, int num_heads) {
    return DeltaNetScratchFloats(key_dim, value_dim, num_heads) + Scratch(nullptr, key_dim, value_dim, num_heads).num_floats;
  }
  AmxChunkProducts(const DeltaNetTask& task, const DeltaNetScratch& s)
      : s_(s), split_(task.scratch + s.num_floats, task.key_dim, task.value_dim, task.group), num_heads_(task.group),
        key_dim_(task.key_dim) {
    AmxBf16::Begin();
  }
  AmxChunkProducts(const AmxChunkProducts&) = delete;
  AmxChunkProducts& operator=(const AmxChunkProducts&) = delete;
  ~AmxChunkProducts() { AmxBf16::End(); }

  void StoreWeights(int row, int column, __m512 lanes) const { SplitLanes(split_.weights, row * kChunk + column, lanes); }

  template <typename Side>
  void Prepare(const DeltaNetTask& task, int count, Side& side) const {
    const int rows = RoundUp(count, 16);
    const float scale = 1.0f / sqrtf(static_cast<float>(task.key_dim));
    for (int i = 0; i < rows; ++i) {
      const int64_t row = i * split_.keys;
      if (i < count) {
        L2Normalize<Simd>(task.q + i * task.conv_stride, task.key_dim, scale,
                          [&](int p, __m512 lanes) { SplitLanes(split_.q, row + p, lanes); });
        L2Normalize<Simd>(task.k + i * task.conv_stride, task.key_dim, 1.0f,
                          [&](int p, __m512 lanes) { SplitLanes(split_.k, row + p, lanes); });
      }
      for (int p = i < count ? RoundUp(task.key_dim, 16) : 0; p < split_.keys; p += 16) {
        SplitLanes(split_.q, row + p, _mm512_setzero_ps());
        SplitLanes(split_.k, row + p, _mm512_setzero_ps());
      }
    }
    TransposeKeys({split_.k.high, split_.k_panels.high, split_.k_transposed.high}, split_.keys, rows);
    TransposeKeys({split_.k.low, split_.k_panels.low, split_.k_transposed.low}, split_.keys, rows);
    for (const bool is_key : {true, false}) {
      const Split<uint16_t>& a = is_key ? split_.k : split_.q;
      AmxBf16::Multiply({.a = a.high, .a_stride = split_.keys, .b = split_.k_panels.high, .b_panel = 8 * split_.keys,
                         .c = is_key ? s_.kk : s_.qk, .c_stride = kChunkStride, .m = rows, .n = rows, .k = split_.keys,
                         .c_is_lower = true},
                        {.a = a.low, .b = split_.k_panels.low}, [&] { side.Step(); });
    }
  }

  void BeginStates(bool are_zero) const {
    for (int head = 0; head < num_heads_; ++head) {
      float* state = s_.state(head);
      for (int64_t i = key_dim_ * s_.value_stride; i < s_.state_size(); ++i) state[i] = 0;
      SplitPanels(StatePanels(head), 8 * split_.keys,
                  {are_zero ? split_.padded_keys : 0, split_.padded_keys, split_.keys, split_.values},
                  [&](int row, int column) { return _mm512_loadu_ps(state + row * s_.value_stride + column); });
    }
  }

  template <typename Side>
  void ReadState(const DeltaNetTask&, int head, int count, Side& side) const {
    const Split<uint32_t> state = StatePanels(head);
    for (const bool is_key : {true, false}) {
      const Split<uint16_t>& a = is_key ? split_.k : split_.q;
      AmxBf16::Multiply({.a = a.high, .a_stride = split_.keys, .b = state.high, .b_panel = 8 * split_.keys,
                         .c = is_key ? s_.x : s_.out, .c_stride = s_.value_stride, .m = RoundUp(count, 16),
                         .n = split_.values, .k = split_.keys},
                        {.a = a.low, .b = state.low}, [&] { side.Step(); });
    }
  }

  // The second half of the rows takes the first half, solved, from its own in one product of tiles.
  template <typename Side>
  void Solve(const DeltaNetTask&, int count, Side& side) const {
    SolveUnitLower<Simd>(s_, 0, Least(count, kHalf), split_.values);
    SplitX(0, count);
    if (count <= kHalf) return;
    for (int i = kHalf; i < count; ++i) {
      for (int j = 0; j < kHalf; j += 16) {
        SplitLanes(split_.solve_weights, (i - kHalf) * kHalf + j, _mm512_loadu_ps(s_.weights + i * kChunkStride + j));
      }
    }
    AmxBf16::Multiply({.a = split_.solve_weights.high, .a_stride = kHalf, .b = split_.x_panels.high, .b_panel = 8 * kChunk,
                       .c = s_.x + kHalf * s_.value_stride, .c_stride = s_.value_stride,
                       .m = RoundUp(count - kHalf, 16), .n = split_.values, .k = kHalf},
                      {.a = split_.solve_weights.low, .b = split_.x_panels.low, .accumulate = true}, [&] { side.Step(); });
    SolveUnitLower<Simd>(s_, kHalf, count, split_.values);
    SplitX(kHalf, count);
  }

  template <typename Side>
  void AddValues(const DeltaNetTask&, int count, Side& side) const {
    const int rows = RoundUp(count, 16), depth = RoundUp(count, 32);
    for (int i = count; i < rows; ++i) {
      for (int j = 0; j < depth; j += 16) StoreWeights(i, j, _mm512_setzero_ps());
    }
    AmxBf16::Multiply({.a = split_.weights.high, .a_stride = kChunk, .b = split_.x_panels.high, .b_panel = 8 * kChunk,
                       .c = s_.out, .c_stride = s_.value_stride, .m = rows, .n = split_.values, .k = depth,
                       .a_is_lower = true},
                      {.a = split_.weights.low, .b = split_.x_panels.low, .accumulate = true}, [&] { side.Step(); });
  }

  template <typename Side>
  void UpdateState(const DeltaNetTask&, int head, const float* factors, float decay, int count, Side& side) const {
    const int depth = RoundUp(count, 32);
    SplitPanels(split_.x_panels, 8 * kChunk, {0, count, depth, split_.values}, [&](int row, int column) {
      return _mm512_mul_ps(_mm512_set1_ps(factors[row]), _mm512_loadu_ps(s_.x + row * s_.value_stride + column));
    });
    AdvancedState state(s_.state(head), s_.value_stride, StatePanels(head), split_, decay);
    AmxBf16::MultiplyBlocks({.a = split_.k_transposed.high, .a_stride = kChunk, .b = split_.x_panels.high,
                             .b_panel = 8 * kChunk, .c_stride = kHalf, .m = split_.padded_keys, .n = split_.values,
                             .k = depth},
                            {.a = split_.k_transposed.low, .b = split_.x_panels.low}, split_.blocks,
                            [&] {
                              side.Step();
                              state.Step();
                            },
                            [&](const float* block, int row, int column) { state.Add(block, row, column); });
    state.Finish();
  }

 private:
  Split<uint32_t> StatePanels(int head) const {
    const int64_t at = int64_t{head} * split_.keys * split_.values / 2;
    return {split_.state_panels.high + at, split_.state_panels.low + at};
  }
  // Rows [first, first + kHalf) of x as panels, zero from `count` on.
  void SplitX(int first, int count) const {
    SplitPanels(split_.x_panels, 8 * kChunk, {first, Least(count, first + kHalf), first + kHalf, split_.values},
                [&](int row, int column) { return _mm512_loadu_ps(s_.x + row * s_.value_stride + column); });
  }

  // S <- decay S + a product, 32 x 32 elements of it at a time, in f32 and as panels: beside the tiles of the next ones.
  class AdvancedState {
   public:
    AdvancedState(float* state, int64_t stride, const Split<uint32_t>& panels, const Scratch& sizes, float decay)
        : state_(state), stride_(stride), panels_(panels), panel_(8 * sizes.keys), num_rows_(sizes.padded_keys),
          num_columns_(sizes.values), decay_(_mm512_set1_ps(decay)) {}
    void Add(const float* block, int row, int column) {
      Finish();
      block_ = block;
      row_ = row;
      end_ = Least(row + kHalf, num_rows_);
      column_ = column;
    }
    void Step() {
      const int end = Least(row_ + kHalf / 2, end_);
      Rows(end);
    }
    void Finish() { Rows(end_); }

   private:
    void Rows(int end) {
      const bool wide = column_ + 16 < num_columns_;
      for (; row_ < end; row_ += 2, block_ += 2 * kHalf) {
        Pair(block_, column_);
        if (wide) Pair(block_ + 16, column_ + 16);
      }
    }
    void Pair(const float* block, int column) {
      float* state = state_ + row_ * stride_ + column;
      const __m512 even = _mm512_fmadd_ps(decay_, _mm512_loadu_ps(state), _mm512_loadu_ps(block));
      const __m512 odd = _mm512_fmadd_ps(decay_, _mm512_loadu_ps(state + stride_), _mm512_loadu_ps(block + kHalf));
      _mm512_storeu_ps(state, even);
      _mm512_storeu_ps(state + stride_, odd);
      SplitPair(panels_, column / 16 * panel_ + 8 * row_, even, odd);
    }
    float* state_;
    const int64_t stride_;
    const Split<uint32_t> panels_;
    const int64_t panel_;
    const int num_rows_, num_columns_;
    const __m512 decay_;
    const float* block_ = nullptr;
    int row_ = 0, end_ = 0, column_ = 0;
  };

  static void SplitLanes(const Split<uint16_t>& split, int64_t to, __m512 lanes) {
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(lanes);
    const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(lanes, Widen(high)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(split.high + to), high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(split.low + to), low);
  }
  // Rows 2l and 2l + 1 of 16 columns of a panel, to dword 16 l.
  static void SplitPair(const Split<uint32_t>& split, int64_t to, __m512 even, __m512 odd) {
    const __m256i even_high = (__m256i)_mm512_cvtneps_pbh(even), odd_high = (__m256i)_mm512_cvtneps_pbh(odd);
    _mm512_storeu_si512(split.high + to, Pairs(even_high, odd_high));
    _mm512_storeu_si512(split.low + to, Pairs((__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(even, Widen(even_high))),
                                              (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(odd, Widen(odd_high)))));
  }
  // Panels (Bf16Gemm::b) of a matrix from row `first` on, which is even: lanes(row, column) of rows below `valid`, zeros up
  // to `padded` rows.
  struct PanelSize {
    int first, valid, padded, columns;
  };
  template <typename Lanes>
  static void SplitPanels(const Split<uint32_t>& split, int64_t panel, const PanelSize& size, const Lanes& lanes) {
    for (int l = size.first; l < size.padded; l += 2) {
      for (int c = 0; c < size.columns; c += 16) {
        const __m512 even = l < size.valid ? lanes(l, c) : _mm512_setzero_ps();
        const __m512 odd = l + 1 < size.valid ? lanes(l + 1, c) : _mm512_setzero_ps();
        SplitPair(split, c / 16 * panel + 8 * l, even, odd);
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

  const DeltaNetScratch& s_;
  const Scratch split_;
  const int num_heads_, key_dim_;
};

}  // namespace
}  // namespace plumbline
