// The parts of a linear that depend on the instruction set, as tables of functions.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_features.h"
#include "kernels/tensor.h"

namespace plumbline {

// Rows of activations in the form a kernel reads: tiles of tile_rows rows (the last may have fewer), each
// [k / k_group][rows of the tile][k_group] elements. Row tile i starts at element i * tile_rows * panel_k.
struct PanelFormat {
  int tile_rows;
  int k_group;
  DType dtype;  // kBf16 or kF32
};

struct MultiplyArgs {
  const void* panel;      // first of the row tiles to multiply
  int64_t panel_k;        // padded k of the panel
  int64_t panel_k_begin;  // where in it num_k values are taken
  int64_t num_k;          // a multiple of 32
  int64_t num_rows;
  const void* weight;     // num_k rows of one block (linear_layout.h)
  float* out;             // [num_rows, 32], rows out_stride apart
  int64_t out_stride;
  bool accumulate;        // continue the sums in out, else start from zero
};

// out (+)= panel * weight. The sum of an element runs over ascending k, in an order that depends on nothing else; a sum
// continued in a second call has the bits of one call.
struct LinearKernel {
  PanelFormat format;
  void (*multiply)(const MultiplyArgs& args);
};

struct LinearTable {
  LinearKernel bf16, f16, f32;
  void (*add)(float* sum, const float* x, int64_t n);                     // sum += x
  void (*add_scaled)(float* sum, const float* x, float scale, int64_t n);  // sum += scale * x, product rounded
  void (*store)(float* out, const float* x, const float* bias, int64_t n);  // out = x + bias; bias may be null
  // out = silu(gate) * up as dtype; gated holds 16 gates, 16 ups, 16 gates, ... of n outputs.
  void (*gate)(void* out, DType dtype, const float* gated, int64_t n);
  // to[c][r] = from[r][c] of 16 x 16 elements of 4 bytes; strides in bytes.
  void (*transpose)(void* to, int64_t to_stride, const void* from, int64_t from_stride);
};

const LinearTable& LinearTableOf(CpuArithmetic arithmetic);

inline const LinearKernel& KernelOf(const LinearTable& table, DType dtype) {
  return dtype == DType::kBf16 ? table.bf16 : dtype == DType::kF16 ? table.f16 : table.f32;
}

extern const LinearTable kLinearScalar;
extern const LinearTable kLinearAvx2;
extern const LinearTable kLinearAvx512;
extern const LinearKernel kLinearAmxBf16;

}  // namespace plumbline
