// The parts of a linear that depend on the instruction set, as tables of functions.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_features.h"
#include "kernels/tensor.h"

namespace plumbline {

// Rows of activations in the form a kernel reads: every leaf in chunks of about chunk_k (activation_panel.h), a
// chunk in tiles of tile_rows rows (the last may have fewer), a tile as [k / k_group][rows][k_group] elements.
struct PanelFormat {
  int tile_rows;
  int k_group;
  int chunk_k;  // a multiple of 32: so much of a block of weights stays in the L1 cache while the rows pass
  DType dtype;  // kBf16 or kF32
  bool reads_rows = false;  // also takes rows as they lie in x
};

// Memory that the next products read: fetched into the L2 cache while this one is computed.
struct UpcomingBytes {
  const void* data = nullptr;
  int64_t num_bytes = 0;
};

// Takes finished sums tile by tile, while they are in the L1 cache: rows [first_row, first_row + num_rows)
// of the product, [num_rows, 32]; may change them.
struct TileSink {
  void (*take)(const void* context, int64_t first_row, int64_t num_rows, float* sums) = nullptr;
  const void* context = nullptr;
};

struct MultiplyArgs {
  const void* panel;        // the row tiles of one chunk
  int64_t panel_row_bytes;  // from row to row where they are rows of x as it lies; else 0
  const void* weight;       // num_k rows of one block (linear_layout.h)
  int64_t num_k;            // a multiple of 32
  int64_t num_rows;
  float* out;               // [num_rows, 32]
  bool accumulate;          // continue the sums in out, else start from zero
  TileSink sink;            // where given, out's new content does not matter
  UpcomingBytes upcoming_weight;  // a kernel may ignore it
};

// out (+)= panel * weight. The sum of an element runs over ascending k, in an order that depends on
// nothing else; a sum continued in a second call has the bits of one call.
struct LinearKernel {
  PanelFormat format;
  void (*multiply)(const MultiplyArgs& args);
  // Multiply-adds of `rounds` rounds on registers alone: the most that multiply could do. Returns their FLOPs.
  int64_t (*saturate)(int64_t rounds);
};

// The finished sums of one block on their way to the op's output.
struct StoreArgs {
  const float* sums;  // [num_rows, 32]
  int64_t num_rows;
  int num_columns;     // of the output: at most 32, gated at most 16
  void* out;           // first element
  int64_t out_stride;  // elements from row to row
  DType out_dtype;
  const float* bias;   // [num_columns] or null
  // Past the caches; store() of f32 only, 32 columns, rows aligned to 64 bytes. The locked operation that ends a task
  // orders it.
  bool streamed = false;
};

struct LinearTable {
  LinearKernel bf16, f16, f32;
  void (*add)(float* sum, const float* x, int64_t n);  // sum += x
  void (*add_scaled)(float* sum, const float* x, float scale,
                     int64_t n);               // sum += scale * x, product rounded
  void (*store)(const StoreArgs& args);        // out = sums + bias
  void (*store_gated)(const StoreArgs& args);  // out = silu(sums[:, :16]) * sums[:, 16:]
  // Reads memory as fast as it comes; the result is of no use. num_bytes: a multiple of 64.
  float (*read)(const void* memory, int64_t num_bytes);
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
