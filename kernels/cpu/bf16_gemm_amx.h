// Bf16Gemm on AMX tiles. Included only by files compiled with AMX.
#pragma once

#include "kernels/cpu/bf16_gemm_avx512.h"

namespace plumbline {
namespace {

struct AmxBf16 {
  static constexpr int kRowMultiple = 16;

  // Around all products of a task: the tile registers are this thread's.
  static void Begin() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  static void End() { _tile_release(); }

  // With a_low, rows as far apart as those of A: (A + A_low) B, where A_low is what A's rounding lost.
  static void Multiply(const Bf16Gemm& g, const uint16_t* a_low = nullptr) {
    asm volatile("" ::: "memory");  // the tile loads do not say that they read memory
    for (int column = 0; column < g.n; column += 32) {
      const bool wide = column + 32 <= g.n;
      for (int row = 0; row < g.m; row += 32) {
        const bool tall = row + 32 <= g.m;
        if (wide) {
          tall ? Block<true, true>(g, a_low, row, column) : Block<false, true>(g, a_low, row, column);
        } else {
          tall ? Block<true, false>(g, a_low, row, column) : Block<false, false>(g, a_low, row, column);
        }
      }
    }
    asm volatile("" ::: "memory");
  }

 private:
  // Tiles 0..3 sum (row half, column half) 00 01 10 11; 4 and 5 hold A, 6 and 7 hold B.
  template <bool kTall, bool kWide>
  static void Block(const Bf16Gemm& g, const uint16_t* a_low, int row, int column) {
    _tile_zero(0);
    if constexpr (kWide) _tile_zero(1);
    if constexpr (kTall) _tile_zero(2);
    if constexpr (kTall && kWide) _tile_zero(3);
    const int64_t a_bytes = g.a_stride * 2;
    const uint32_t* b = g.b + column / 16 * g.b_panel;
    for (int l = 0; l < g.k; l += 32) {
      _tile_loadd(6, b + 8 * l, 64);
      if constexpr (kWide) _tile_loadd(7, b + g.b_panel + 8 * l, 64);
      Products<kTall, kWide>(g.a + row * g.a_stride + l, g.a_stride, a_bytes);
      if (a_low != nullptr) Products<kTall, kWide>(a_low + row * g.a_stride + l, g.a_stride, a_bytes);
    }
    float* c = g.c + row * g.c_stride + column;
    const int64_t c_bytes = g.c_stride * 4;
    _tile_stored(0, c, c_bytes);
    if constexpr (kWide) _tile_stored(1, c + 16, c_bytes);
    if constexpr (kTall) _tile_stored(2, c + 16 * g.c_stride, c_bytes);
    if constexpr (kTall && kWide) _tile_stored(3, c + 16 * g.c_stride + 16, c_bytes);
  }

  template <bool kTall, bool kWide>
  static void Products(const uint16_t* a, int64_t a_stride, int64_t a_bytes) {
    _tile_loadd(4, a, a_bytes);
    if constexpr (kTall) _tile_loadd(5, a + 16 * a_stride, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kWide) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTall) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTall && kWide) _tile_dpbf16ps(3, 5, 7);
  }
};

}  // namespace
}  // namespace plumbline
