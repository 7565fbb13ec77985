// Bf16Gemm on AMX tiles. Included only by files compiled with AMX.
#pragma once

#include "kernels/cpu/bf16_gemm_avx512.h"

namespace plumbline {
namespace {

// What rounding to bf16 lost of A and B, laid out like them; null to leave out. Of (A + a)(B + b), a b is left out.
struct Bf16Rest {
  const uint16_t* a = nullptr;
  const uint32_t* b = nullptr;
  bool accumulate = false;  // add to C
};

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

  static void Multiply(const Bf16Gemm& g, const Bf16Rest& rest = {}) { Multiply(g, rest, [] {}); }
  // each_step is called between the products, one or more times for every 32 x 32 elements of C.
  template <typename EachStep>
  static void Multiply(const Bf16Gemm& g, const Bf16Rest& rest, const EachStep& each_step) {
    EachBlock(g, [&]<bool kTall, bool kWide>(int row, int column) {
      Block<kTall, kWide>(g, rest, row, column, g.c + row * g.c_stride + column, each_step);
    });
  }
  // Each 32 x 32 elements of C in turn into one of two buffers, c_stride apart from row to row, then to
  // block(buffer, row, column). A buffer is written again after the next block's call.
  template <typename EachStep, typename OfBlock>
  static void MultiplyBlocks(const Bf16Gemm& g, const Bf16Rest& rest, float* const buffers[2], const EachStep& each_step,
                             const OfBlock& of_block) {
    int index = 0;
    EachBlock(g, [&]<bool kTall, bool kWide>(int row, int column) {
      float* buffer = buffers[index++ % 2];
      Block<kTall, kWide>(g, rest, row, column, buffer, each_step);
      of_block(buffer, row, column);
    });
  }

 private:
  template <typename Function>
  static void EachBlock(const Bf16Gemm& g, const Function& block) {
    asm volatile("" ::: "memory");  // the tile loads do not say that they read memory
    for (int column = 0; column < g.n; column += 32) {
      const bool wide = column + 32 <= g.n;
      for (int row = g.c_is_lower ? column : 0; row < g.m; row += 32) {
        const bool tall = row + 32 <= g.m;
        if (wide) {
          tall ? block.template operator()<true, true>(row, column) : block.template operator()<false, true>(row, column);
        } else {
          tall ? block.template operator()<true, false>(row, column) : block.template operator()<false, false>(row, column);
        }
      }
    }
    asm volatile("" ::: "memory");
  }
  // Tiles 0..3 sum (row half, column half) 00 01 10 11; 4 and 5 hold A, 6 and 7 hold B.
  template <bool kTall, bool kWide, typename EachStep>
  static void Block(const Bf16Gemm& g, const Bf16Rest& rest, int row, int column, float* c, const EachStep& each_step) {
    const int64_t c_bytes = g.c_stride * 4;
    if (rest.accumulate) {
      _tile_loadd(0, c, c_bytes);
      if constexpr (kWide) _tile_loadd(1, c + 16, c_bytes);
      if constexpr (kTall) _tile_loadd(2, c + 16 * g.c_stride, c_bytes);
      if constexpr (kTall && kWide) _tile_loadd(3, c + 16 * g.c_stride + 16, c_bytes);
    } else {
      _tile_zero(0);
      if constexpr (kWide) _tile_zero(1);
      if constexpr (kTall) _tile_zero(2);
      if constexpr (kTall && kWide) _tile_zero(3);
    }
    const int64_t panel = column / 16 * g.b_panel;
    const int end = g.a_is_lower && row + 32 < g.k ? row + 32 : g.k;
    for (int l = 0; l < end; l += 32) {
      const uint16_t* a = g.a + row * g.a_stride + l;
      each_step();
      LoadB<kWide>(g.b + panel + 8 * l, g.b_panel);
      if (rest.a != nullptr) {
        LoadA<kTall>(rest.a + row * g.a_stride + l, g.a_stride);
        Products<kTall, kWide>();
      }
      LoadA<kTall>(a, g.a_stride);
      Products<kTall, kWide>();
      if (rest.b != nullptr) {
        LoadB<kWide>(rest.b + panel + 8 * l, g.b_panel);
        Products<kTall, kWide>();
      }
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (kWide) _tile_stored(1, c + 16, c_bytes);
    if constexpr (kTall) _tile_stored(2, c + 16 * g.c_stride, c_bytes);
    if constexpr (kTall && kWide) _tile_stored(3, c + 16 * g.c_stride + 16, c_bytes);
  }

  template <bool kTall>
  static void LoadA(const uint16_t* a, int64_t stride) {
    _tile_loadd(4, a, stride * 2);
    if constexpr (kTall) _tile_loadd(5, a + 16 * stride, stride * 2);
  }
  template <bool kWide>
  static void LoadB(const uint32_t* b, int64_t panel) {
    _tile_loadd(6, b, 64);
    if constexpr (kWide) _tile_loadd(7, b + panel, 64);
  }
  template <bool kTall, bool kWide>
  static void Products() {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kWide) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTall) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTall && kWide) _tile_dpbf16ps(3, 5, 7);
  }
};

}  // namespace
}  // namespace plumbline
