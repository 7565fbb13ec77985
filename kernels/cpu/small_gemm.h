// Products of small matrices in scratch memory: C = A B (+ c_scale C). Each element of C is one accumulation over
// ascending k, whatever the blocking: a row of C depends on its row of A alone.
#pragma once

#include <cstdint>

namespace plumbline {
namespace {

inline int Least(int a, int b) { return a < b ? a : b; }
inline int Most(int a, int b) { return a > b ? a : b; }
inline int RoundUp(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Lengths and strides in elements. b and c are padded to a multiple of 16 columns; n counts the padding.
struct SmallGemm {
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int m, n, k;
  float c_scale = 0;          // 0: C is only written
  bool a_is_lower = false;    // A[i, j] is zero for j > i: those products are left out
  bool c_is_lower = false;    // C[i, j] is not needed for j > i
};

template <typename Simd, int kRows, int kVectors>
void GemmBlock(const SmallGemm& g, int row, int column, int k) {
  using F = typename Simd::F;
  F sum[kRows][kVectors];
  float* c = g.c + row * g.c_stride + column;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = g.c_scale == 0 ? Simd::Zero()
                                 : Simd::Mul(Simd::Set(g.c_scale), Simd::Load(c + i * g.c_stride + 16 * j));
    }
  }
  const float* a = g.a + row * g.a_stride;
  const float* b = g.b + column;
  for (int l = 0; l < k; ++l, b += g.b_stride) {
    F panel[kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) panel[j] = Simd::Load(b + 16 * j);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const F factor = Simd::Set(a[i * g.a_stride + l]);
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) sum[i][j] = Simd::Fma(factor, panel[j], sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) Simd::Store(c + i * g.c_stride + 16 * j, sum[i][j]);
  }
}

template <typename Simd, int kVectors>
void GemmColumns(const SmallGemm& g, int column) {
  constexpr int kRows = Simd::kGemmRows;
  for (int row = 0; row < g.m; row += kRows) {
    const int rows = Least(kRows, g.m - row);
    if (g.c_is_lower && column > row + rows - 1) continue;
    const int k = g.a_is_lower ? Least(g.k, row + rows) : g.k;
    if (rows == kRows) {
      GemmBlock<Simd, kRows, kVectors>(g, row, column, k);
    } else {
      for (int i = 0; i < rows; ++i) GemmBlock<Simd, 1, kVectors>(g, row + i, column, k);
    }
  }
}

template <typename Simd>
void Multiply(const SmallGemm& g) {
  constexpr int kColumns = 16 * Simd::kGemmVectors;
  int column = 0;
  for (; column + kColumns <= g.n; column += kColumns) GemmColumns<Simd, Simd::kGemmVectors>(g, column);
  for (; column < g.n; column += 16) GemmColumns<Simd, 1>(g, column);
}

}  // namespace
}  // namespace plumbline
