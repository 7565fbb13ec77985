#include "kernels/cpu/linear_driver.h"

#include <algorithm>
#include <cstring>

#include "kernels/half.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxRowsPerBlock = 512;
constexpr int64_t kMaxBlocksPerGroup = 8;
constexpr int64_t kWeightChunkBytes = 32 << 10;       // of one block; stays in the L1 cache while the rows pass
constexpr int64_t kMinParallelPanelBytes = 64 << 10;  // below, waking the pool costs more than the copy

// Packs columns [begin, end) of one row into out, whose k groups lie `stride` elements apart, up to padded_k.
template <int kGroup>
void PackBf16Row(const uint16_t* x, int64_t num_k, int64_t padded_k, uint16_t* out, int64_t stride) {
  int64_t k = 0;
  for (; k + kGroup <= num_k; k += kGroup, out += stride) std::memcpy(out, x + k, kGroup * sizeof *x);
  for (; k < padded_k; k += kGroup, out += stride) {
    for (int i = 0; i < kGroup; ++i) out[i] = k + i < num_k ? x[k + i] : 0;
  }
}

template <typename T>
void PackF32Row(const T* x, int64_t num_k, int64_t padded_k, float* out, int64_t stride) {
  for (int64_t k = 0; k < num_k; ++k) out[k * stride] = ToFloat(x[k]);
  for (int64_t k = num_k; k < padded_k; ++k) out[k * stride] = 0;
}

// One leaf of one row tile.
void PackPanelPart(const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args, int64_t tile,
                   int leaf) {
  const int64_t first_row = tile * format.tile_rows;
  const int64_t rows = std::min<int64_t>(format.tile_rows, args.num_rows - first_row);
  const int64_t begin = layout.leaf_begin(leaf), num_k = layout.leaf_end(leaf) - begin;
  const int64_t padded_k = layout.padded_leaf_k(), stride = rows * format.k_group;
  const int64_t part = first_row * layout.padded_k() + leaf * padded_k * rows;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = args.row_ids ? args.row_ids[first_row + r] : first_row + r;
    const int64_t from = row * layout.shape().k + begin, to = part + r * format.k_group;
    if (format.dtype == DType::kBf16) {
      const uint16_t* x = args.x.as<uint16_t>() + from;
      uint16_t* out = reinterpret_cast<uint16_t*>(args.out) + to;
      if (format.k_group == kTileK) {
        PackBf16Row<kTileK>(x, num_k, padded_k, out, stride);
      } else {
        PL_CHECK(format.k_group == 2);
        PackBf16Row<2>(x, num_k, padded_k, out, stride);
      }
      continue;
    }
    float* out = reinterpret_cast<float*>(args.out) + to;
    if (args.x.dtype() == DType::kBf16) {
      PackF32Row(args.x.as<Bf16>() + from, num_k, padded_k, out, stride);
    } else if (args.x.dtype() == DType::kF16) {
      PackF32Row(args.x.as<F16>() + from, num_k, padded_k, out, stride);
    } else {
      PackF32Row(args.x.as<float>() + from, num_k, padded_k, out, stride);
    }
  }
}

int64_t NumParts(const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args) {
  return (args.num_rows + format.tile_rows - 1) / format.tile_rows * layout.shape().num_leaves;
}

}  // namespace

void PackPanel(const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args) {
  const int leaves = layout.shape().num_leaves;
  for (int64_t part = 0; part < NumParts(format, layout, args); ++part) {
    PackPanelPart(format, layout, args, part / leaves, static_cast<int>(part % leaves));
  }
}

void PackPanel(ThreadPool& pool, const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args) {
  if (PanelBytes(format, layout, args.num_rows) < kMinParallelPanelBytes) return PackPanel(format, layout, args);
  const int leaves = layout.shape().num_leaves;
  pool.ParallelFor(NumParts(format, layout, args), [&](int64_t part, int) {
    PackPanelPart(format, layout, args, part / leaves, static_cast<int>(part % leaves));
  });
}

void MultiplyLeaf(const ProductTile& tile, int leaf, float* out) {
  const LinearLayout& layout = tile.layout;
  const PanelFormat& format = tile.kernel.format;
  const int64_t leaf_k = layout.padded_leaf_k();
  // One row tile reads each weight once: in the order in which it lies in memory. More rows go through a chunk of the
  // block before the next chunk.
  const int64_t chunk_k = tile.num_rows <= format.tile_rows
                              ? leaf_k
                              : kWeightChunkBytes / (kBlockColumns * static_cast<int64_t>(SizeOf(layout.shape().dtype)));
  const int64_t panel_bytes = tile.first_row * layout.padded_k() * static_cast<int64_t>(SizeOf(format.dtype));
  for (int64_t k = 0; k < leaf_k; k += chunk_k) {
    for (int64_t block = 0; block < tile.num_blocks; ++block) {
      tile.kernel.multiply({.panel = tile.panel.data + panel_bytes,
                            .panel_k = layout.padded_k(),
                            .panel_k_begin = leaf * leaf_k + k,
                            .num_k = std::min(chunk_k, leaf_k - k),
                            .num_rows = tile.num_rows,
                            .weight = tile.weight + layout.offset(tile.first_block + block, leaf, k),
                            .out = out + block * kBlockColumns,
                            .out_stride = tile.out_stride(),
                            .accumulate = k > 0});
    }
  }
}

// Leaves are added as soon as both halves of a subtree are there: at most one waits per level.
int64_t TreeScratchFloats(const ProductTile& tile) {
  int64_t levels = 1;
  for (int leaves = tile.layout.shape().num_leaves; leaves > 1; leaves /= 2) ++levels;
  return levels * tile.num_sums();
}

void MultiplyTree(const LinearTable& table, const ProductTile& tile, float* scratch) {
  const int64_t num_sums = tile.num_sums();
  float* next = scratch;
  for (int leaf = 0; leaf < tile.layout.shape().num_leaves; ++leaf) {
    MultiplyLeaf(tile, leaf, next);
    next += num_sums;
    for (int done = leaf; done & 1; done >>= 1) {
      next -= num_sums;
      table.add(next - num_sums, next, num_sums);
    }
  }
}

ProductGrid::ProductGrid(const LinearKernel& kernel, const LinearLayout& layout, int64_t num_rows, int num_threads)
    : num_rows(num_rows), num_blocks(layout.num_blocks()) {
  rows_per_block = kMaxRowsPerBlock / kernel.format.tile_rows * kernel.format.tile_rows;
  // Several tasks per thread even out threads that were held up.
  blocks_per_group = std::clamp<int64_t>(num_blocks / (4 * num_threads), 1, kMaxBlocksPerGroup);
  num_row_blocks = (num_rows + rows_per_block - 1) / rows_per_block;
  num_column_groups = (num_blocks + blocks_per_group - 1) / blocks_per_group;
}

void ProductGrid::Place(int64_t task, ProductTile& tile) const {
  tile.first_row = task / num_column_groups * rows_per_block;
  tile.num_rows = std::min(rows_per_block, num_rows - tile.first_row);
  tile.first_block = task % num_column_groups * blocks_per_group;
  tile.num_blocks = std::min(blocks_per_group, num_blocks - tile.first_block);
}

}  // namespace plumbline
