#include "kernels/cpu/linear_driver.h"

#include <algorithm>
#include <cstring>

#include "kernels/half.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxRowsPerBlock = 512;
constexpr int64_t kMaxBlocksPerGroup = 8;
constexpr int64_t kWeightChunkBytes =
    64 << 10;  // of one block; stays in the L1 cache while the rows pass
constexpr int64_t kMinParallelPanelBytes =
    64 << 10;  // below, waking the pool costs more than the copy

// Packs num_k values of one row, padded with zeros to padded_k, into k groups that lie `stride`
// elements apart.
template <int kGroup>
void PackBf16Row(const uint16_t* x, int64_t num_k, int64_t padded_k, uint16_t* out,
                 int64_t stride) {
  int64_t k = 0;
  for (; k + kGroup <= num_k; k += kGroup, out += stride)
    std::memcpy(out, x + k, kGroup * sizeof *x);
  for (; k < padded_k; k += kGroup, out += stride) {
    for (int i = 0; i < kGroup; ++i) out[i] = k + i < num_k ? x[k + i] : 0;
  }
}

template <typename T>
void PackF32Row(const T* x, int64_t num_k, int64_t padded_k, float* out, int64_t stride) {
  for (int64_t k = 0; k < num_k; ++k) out[k * stride] = ToFloat(x[k]);
  for (int64_t k = num_k; k < padded_k; ++k) out[k * stride] = 0;
}

struct RowPiece {
  int64_t element;  // of x
  int64_t num_k, padded_k;
  int64_t out, stride;  // elements of the panel
};

void PackRowPiece(const PanelFormat& format, const PackPanelArgs& args, const RowPiece& piece) {
  if (format.dtype == DType::kBf16) {
    const uint16_t* x = args.x.as<uint16_t>() + piece.element;
    uint16_t* out = reinterpret_cast<uint16_t*>(args.out) + piece.out;
    PL_CHECK(format.k_group == kTileK || format.k_group == 2);
    if (format.k_group == 2)
      return PackBf16Row<2>(x, piece.num_k, piece.padded_k, out, piece.stride);
    return PackBf16Row<kTileK>(x, piece.num_k, piece.padded_k, out, piece.stride);
  }
  float* out = reinterpret_cast<float*>(args.out) + piece.out;
  if (args.x.dtype() == DType::kBf16) {
    PackF32Row(args.x.as<Bf16>() + piece.element, piece.num_k, piece.padded_k, out, piece.stride);
  } else if (args.x.dtype() == DType::kF16) {
    PackF32Row(args.x.as<F16>() + piece.element, piece.num_k, piece.padded_k, out, piece.stride);
  } else {
    PackF32Row(args.x.as<float>() + piece.element, piece.num_k, piece.padded_k, out, piece.stride);
  }
}

// One leaf of one row tile.
void PackPanelPart(const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args,
                   int64_t tile, int leaf) {
  const int64_t first_row = tile * format.tile_rows;
  const int64_t rows = std::min<int64_t>(format.tile_rows, args.num_rows - first_row);
  const int64_t begin = layout.leaf_begin(leaf), leaf_k = layout.leaf_end(leaf) - begin;
  for (int64_t k = 0; k < layout.padded_leaf_k(); k += format.chunk_k) {
    const int64_t chunk_k = std::min<int64_t>(format.chunk_k, layout.padded_leaf_k() - k);
    const int64_t out = (leaf * layout.padded_leaf_k() + k) * args.num_rows + first_row * chunk_k;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = args.row_ids ? args.row_ids[first_row + r] : first_row + r;
      PackRowPiece(format, args,
                   {.element = row * layout.shape().k + begin + k,
                    .num_k = std::clamp<int64_t>(leaf_k - k, 0, chunk_k),
                    .padded_k = chunk_k,
                    .out = out + r * format.k_group,
                    .stride = rows * format.k_group});
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

void PackPanel(ThreadPool& pool, const PanelFormat& format, const LinearLayout& layout,
               const PackPanelArgs& args) {
  if (PanelBytes(format, layout, args.num_rows) < kMinParallelPanelBytes)
    return PackPanel(format, layout, args);
  const int leaves = layout.shape().num_leaves;
  pool.ParallelFor(NumParts(format, layout, args), [&](int64_t part, int) {
    PackPanelPart(format, layout, args, part / leaves, static_cast<int>(part % leaves));
  });
}

namespace {

// Where the products of one rectangle find their operands.
class ProductSteps {
 public:
  explicit ProductSteps(const ProductTile& tile)
      : tile_(tile), element_bytes_(static_cast<int64_t>(SizeOf(tile.kernel.format.dtype))) {}

  // One row tile reads each weight once: in the order in which it lies in memory, a whole leaf at a
  // time (chunks of one row tile lie one after another). More rows take turns with one chunk of a
  // block.
  bool one_row_tile() const {
    return tile_.num_rows <= tile_.kernel.format.tile_rows &&
           tile_.panel.num_rows == tile_.num_rows;
  }
  int64_t step_k() const { return one_row_tile() ? leaf_k() : tile_.kernel.format.chunk_k; }
  int64_t leaf_k() const { return tile_.layout.padded_leaf_k(); }

  UpcomingBytes Panel(int leaf, int64_t k) const {
    const int64_t num_k = std::min(step_k(), leaf_k() - k);
    const int64_t element = (leaf * leaf_k() + k) * tile_.panel.num_rows + tile_.first_row * num_k;
    return {tile_.panel.data + element * element_bytes_, tile_.num_rows * num_k * element_bytes_};
  }
  UpcomingBytes Weight(int64_t block, int leaf, int64_t k) const {
    const int64_t begin = tile_.layout.offset(tile_.first_block + block, leaf, k);
    const int64_t end =
        tile_.layout.offset(tile_.first_block + block, leaf, std::min(k + step_k(), leaf_k()));
    return {tile_.weight + begin, end - begin};
  }

  // After this step: the next block of the same chunk, then the next chunk, then the next leaf.
  UpcomingBytes UpcomingWeight(int64_t block, int leaf, int64_t k) const {
    if (one_row_tile()) {
      const UpcomingBytes now = Weight(block, leaf, k);
      return {static_cast<const std::byte*>(now.data) + kStreamAheadBytes, now.num_bytes};
    }
    if (block + 1 < tile_.num_blocks) return Weight(block + 1, leaf, k);
    if (k + step_k() < leaf_k()) return Weight(0, leaf, k + step_k());
    if (leaf + 1 < tile_.layout.shape().num_leaves) return Weight(0, leaf + 1, 0);
    return {};
  }
  // The next chunk's rows, a part of them at every block.
  UpcomingBytes UpcomingPanel(int64_t block, int leaf, int64_t k) const {
    UpcomingBytes next;
    if (one_row_tile()) return next;
    if (k + step_k() < leaf_k()) {
      next = Panel(leaf, k + step_k());
    } else if (leaf + 1 < tile_.layout.shape().num_leaves) {
      next = Panel(leaf + 1, 0);
    }
    const int64_t share = (next.num_bytes / 64 + tile_.num_blocks - 1) / tile_.num_blocks * 64;
    const int64_t begin = std::min(block * share, next.num_bytes);
    return {static_cast<const std::byte*>(next.data) + begin,
            std::min(share, next.num_bytes - begin)};
  }

 private:
  static constexpr int64_t kStreamAheadBytes = 8 << 10;

  const ProductTile& tile_;
  const int64_t element_bytes_;
};

}  // namespace

void MultiplyLeaf(const ProductTile& tile, int leaf, float* out) {
  const ProductSteps steps(tile);
  for (int64_t k = 0; k < steps.leaf_k(); k += steps.step_k()) {
    for (int64_t block = 0; block < tile.num_blocks; ++block) {
      tile.kernel.multiply({.panel = steps.Panel(leaf, k).data,
                            .weight = steps.Weight(block, leaf, k).data,
                            .num_k = std::min(steps.step_k(), steps.leaf_k() - k),
                            .num_rows = tile.num_rows,
                            .out = out + block * tile.block_sums(),
                            .accumulate = k > 0,
                            .upcoming_weight = steps.UpcomingWeight(block, leaf, k),
                            .upcoming_panel = steps.UpcomingPanel(block, leaf, k)});
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

void StoreGated(const LinearTable& table, const ProductTile& tile, const float* sums,
                std::byte* out) {
  const int64_t num_outputs = tile.layout.num_outputs();
  const DType dtype = tile.layout.shape().dtype;
  for (int64_t block = 0; block < tile.num_blocks; ++block) {
    const int64_t column = (tile.first_block + block) * kHalfColumns;
    table.store_gated(
        {.sums = sums + block * tile.block_sums(),
         .num_rows = tile.num_rows,
         .num_columns = static_cast<int>(std::min<int64_t>(kHalfColumns, num_outputs - column)),
         .out = out + (tile.first_row * num_outputs + column) * static_cast<int64_t>(SizeOf(dtype)),
         .out_stride = num_outputs,
         .out_dtype = dtype});
  }
}

int64_t MaxRowsPerBlock(const LinearKernel& kernel) {
  return kMaxRowsPerBlock / kernel.format.tile_rows * kernel.format.tile_rows;
}

ProductGrid::ProductGrid(const LinearKernel& kernel, const LinearLayout& layout, int64_t num_rows,
                         int num_threads)
    : num_rows(num_rows), num_blocks(layout.num_blocks()), rows_per_block(MaxRowsPerBlock(kernel)) {
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
