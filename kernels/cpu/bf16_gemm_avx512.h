// Products of small bf16 matrices in scratch memory with f32 sums: Bf16Gemm and its AVX-512 version. An AMX version is in
// bf16_gemm_amx.h. Each row of C depends on its row of A alone, and its order of adds on k alone.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace plumbline {
namespace {

// C = A B. B lies in panels of 16 columns: panel p holds dword (l, c) = {B[2l, 16p + c], B[2l + 1, 16p + c]} at
// b + p * b_panel + 16 l + c. m is a multiple of kRowMultiple, n of 16, k of 32 (padded with zeros); lengths and strides in elements.
struct Bf16Gemm {
  const uint16_t* a;
  int64_t a_stride;
  const uint32_t* b;
  int64_t b_panel;
  float* c;
  int64_t c_stride;
  int m, n, k;
  // A version may leave out 32 x 32 elements of C above the diagonal, or products with such of A.
  bool a_is_lower = false;    // A[i, j] is zero for j > i
  bool c_is_lower = false;    // C[i, j] is not needed for j > i
};

struct Avx512Bf16 {
  static constexpr int kRowMultiple = 1;

  static void Multiply(const Bf16Gemm& g) {
    int column = 0;
    for (; column + 64 <= g.n; column += 64) Columns<4>(g, column);
    for (; column < g.n; column += 16) Columns<1>(g, column);
  }

 private:
  template <int kVectors>
  static void Columns(const Bf16Gemm& g, int column) {
    int row = 0;
    for (; row + 5 <= g.m; row += 5) Block<5, kVectors>(g, row, column);
    for (; row < g.m; ++row) Block<1, kVectors>(g, row, column);
  }

  static __m512bh Pair(const uint16_t* pair) {
    return (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int*>(pair));
  }

  template <int kRows, int kVectors>
  static void Block(const Bf16Gemm& g, int row, int column) {
    __m512 sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) sum[i][j] = _mm512_setzero_ps();
    }
    const uint16_t* a = g.a + row * g.a_stride;
    const uint32_t* b = g.b + column / 16 * g.b_panel;
    for (int l = 0; l < g.k / 2; ++l) {
      __m512bh panel[kVectors];
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) {
        panel[j] = (__m512bh)_mm512_loadu_si512(b + j * g.b_panel + 16 * l);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const __m512bh pair = Pair(a + i * g.a_stride + 2 * l);
#pragma GCC unroll 16
        for (int j = 0; j < kVectors; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], pair, panel[j]);
      }
    }
    float* c = g.c + row * g.c_stride + column;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) _mm512_storeu_ps(c + i * g.c_stride + 16 * j, sum[i][j]);
    }
  }
};

}  // namespace
}  // namespace plumbline
