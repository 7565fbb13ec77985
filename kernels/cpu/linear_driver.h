// What Linear, GatedLinear, QkvLinear and MoeMlp share: products of rows with blocks of columns.
#pragma once

#include <cstdint>

#include "kernels/cpu/activation_panel.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/linear_layout.h"

namespace plumbline {

// A rectangle of the product: a range of row tiles times a range of column blocks.
struct ProductTile {
  const LinearKernel& kernel;
  const LinearLayout& layout;
  const std::byte* weight;  // packed
  Panel panel;
  int64_t first_row;  // a multiple of the kernel's tile_rows
  int64_t num_rows;
  int64_t first_block;
  int64_t num_blocks;

  int64_t block_sums() const { return num_rows * kBlockColumns; }
  int64_t num_sums() const { return num_blocks * block_sums(); }
};

// One leaf: out[num_blocks, num_rows, 32] f32.
void MultiplyLeaf(const ProductTile& tile, int leaf, float* out);

// Finished sums of some rows of one block of a tile.
struct BlockSums {
  int64_t block;      // from the tile's first
  int64_t first_row;  // from the tile's first
  int64_t num_rows;
  const float* data;  // [num_rows, 32], in the L1 cache
};

struct TreeSink {
  void (*take)(const void* context, const BlockSums& sums);
  const void* context;
};

// All leaves added in the tree; every sum goes to the sink once. scratch: [TreeScratchFloats].
int64_t TreeScratchFloats(const ProductTile& tile);
void MultiplyTree(const LinearTable& table, const ProductTile& tile, float* scratch,
                  const TreeSink& sink);
template <typename Fn>  // void(const BlockSums&)
void MultiplyTree(const LinearTable& table, const ProductTile& tile, float* scratch, const Fn& fn) {
  MultiplyTree(table, tile, scratch,
               TreeSink{[](const void* context, const BlockSums& sums) {
                          (*static_cast<const Fn*>(context))(sums);
                        },
                        &fn});
}

// Applies the gate to sums of a gated tile. out: [all rows of the panel, num_outputs] of the weight's dtype, spread.
void StoreGated(const LinearTable& table, const ProductTile& tile, const BlockSums& sums, const Tensor& out);

// Rows whose activations stay in the cache while the columns pass; a multiple of the kernel's
// tile_rows.
int64_t MaxRowsPerBlock(const LinearKernel& kernel);

// How an op is cut into tasks: blocks of rows, as many as there are threads where that leaves enough
// rows to a block, and groups of columns. A thread begins with its own rows (thread_pool.h), which its
// core's cache holds from the op before and for the op that follows.
struct ProductGrid {
  struct Options {
    int64_t unit_blocks = 1;  // a group is a multiple of so many
    int64_t max_rows_per_block = INT64_MAX / 2;
  };
  ProductGrid(const LinearKernel& kernel, const LinearLayout& layout, int64_t num_rows, int num_threads,
              const Options& options);
  ProductGrid(const LinearKernel& kernel, const LinearLayout& layout, int64_t num_rows, int num_threads)
      : ProductGrid(kernel, layout, num_rows, num_threads, Options{}) {}

  int64_t num_tasks() const { return num_row_blocks * num_column_groups; }
  // Sets rows and blocks of a tile to those of a task.
  void Place(int64_t task, ProductTile& tile) const;

  int64_t num_rows, num_blocks;
  int64_t rows_per_block, blocks_per_group;
  int64_t num_row_blocks, num_column_groups;
};

}  // namespace plumbline
