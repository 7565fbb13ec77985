// Lanes16 in two AVX2 registers. Include from *_avx2.cc only.
#pragma once

#include "kernels/cpu/lanes16.h"
#include "kernels/cpu/simd_avx2.h"

namespace plumbline {
namespace {

using Avx2Lanes = Lanes16<Avx2>;

inline void Transpose8(__m256 rows[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

template <>
inline void Avx2Lanes::Transpose(Avx2Lanes::F rows[16]) {
  __m256 quarter[2][2][8];  // [rows below or from 8][lanes below or from 8]
  for (int i = 0; i < 16; ++i) {
    for (int part = 0; part < 2; ++part) quarter[i / 8][part][i % 8] = rows[i].part[part];
  }
  for (auto& half : quarter) {
    for (auto& square : half) Transpose8(square);
  }
  for (int i = 0; i < 16; ++i) {
    for (int part = 0; part < 2; ++part) rows[i].part[part] = quarter[part][i / 8][i % 8];
  }
}

}  // namespace
}  // namespace plumbline
