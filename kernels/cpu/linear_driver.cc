#include "kernels/cpu/linear_driver.h"

#include <algorithm>
#include <bit>

namespace plumbline {
namespace {

constexpr int64_t kMinRowsPerBlock = 128;  // fewer rows wait for the weights
constexpr int64_t kMaxRowsPerBlock = 512;
constexpr int64_t kMaxBlocksPerGroup = 8;

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

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
  int64_t step_k() const { return one_row_tile() ? leaf_k() : ChunkK(tile_.kernel.format, tile_.layout); }
  int64_t leaf_k() const { return tile_.layout.padded_leaf_k(); }

  const std::byte* Panel(int leaf, int64_t k) const {
    const int64_t column = leaf * leaf_k() + k;
    if (tile_.panel.row_bytes > 0) {
      return tile_.panel.data + tile_.first_row * tile_.panel.row_bytes + column * element_bytes_;
    }
    const int64_t num_k = std::min(step_k(), leaf_k() - k);
    return tile_.panel.data + (column * tile_.panel.num_rows + tile_.first_row * num_k) * element_bytes_;
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
    const bool is_last = tile_.first_block + tile_.num_blocks >= tile_.layout.num_blocks();
    return is_last ? UpcomingBytes{} : Weight(tile_.num_blocks, 0, 0);
  }

 private:
  // A tile: it is then loaded in the order in which it comes. Further ahead, prefetches get in the way of the processor's own.
  static constexpr int64_t kStreamAheadBytes = 1 << 10;

  const ProductTile& tile_;
  const int64_t element_bytes_;
};

// Where the tiles of one leaf go when they are finished: added to the leaves that wait for them.
struct LeafEnd {
  const LinearTable& table;
  const TreeSink* root;     // takes the tile when the tree ends here; else it waits
  float* waiting;           // the youngest of the sums that it completes, older ones num_sums apart before it
  int num_waiting;
  int64_t num_sums;
  int64_t block;

  static void Take(const void* context, int64_t first_row, int64_t num_rows, float* sums) {
    const LeafEnd& end = *static_cast<const LeafEnd*>(context);
    const int64_t n = num_rows * kBlockColumns;
    float* older = end.waiting + first_row * kBlockColumns;
    const int num_added = end.root ? end.num_waiting : end.num_waiting - 1;
    for (int i = 0; i < num_added; ++i, older -= end.num_sums) end.table.add(sums, older, n);
    if (end.root) {
      end.root->take(end.root->context, {end.block, first_row, num_rows, sums});
    } else {
      end.table.add(older, sums, n);
    }
  }
};

void MultiplyChunk(const ProductSteps& steps, const ProductTile& tile, int64_t block, int leaf,
                   int64_t k, float* out, TileSink sink) {
  tile.kernel.multiply({.panel = steps.Panel(leaf, k),
                        .panel_row_bytes = tile.panel.row_bytes,
                        .weight = steps.Weight(block, leaf, k).data,
                        .num_k = std::min(steps.step_k(), steps.leaf_k() - k),
                        .num_rows = tile.num_rows,
                        .out = out,
                        .accumulate = k > 0,
                        .sink = sink,
                        .upcoming_weight = steps.UpcomingWeight(block, leaf, k)});
}

}  // namespace

void MultiplyLeaf(const ProductTile& tile, int leaf, float* out) {
  const ProductSteps steps(tile);
  for (int64_t k = 0; k < steps.leaf_k(); k += steps.step_k()) {
    for (int64_t block = 0; block < tile.num_blocks; ++block) {
      MultiplyChunk(steps, tile, block, leaf, k, out + block * tile.block_sums(), {});
    }
  }
}

// At most one subtree waits per level, beside the leaf that is being computed.
int64_t TreeScratchFloats(const ProductTile& tile) {
  int64_t levels = 1;
  for (int leaves = tile.layout.shape().num_leaves; leaves > 1; leaves /= 2) ++levels;
  return levels * tile.num_sums();
}

void MultiplyTree(const LinearTable& table, const ProductTile& tile, float* scratch,
                  const TreeSink& sink) {
  const ProductSteps steps(tile);
  const int num_leaves = tile.layout.shape().num_leaves;
  for (int leaf = 0; leaf < num_leaves; ++leaf) {
    const int num_waiting = std::popcount(static_cast<unsigned>(leaf));
    const int num_completed = std::countr_one(static_cast<unsigned>(leaf));
    const bool is_last_leaf = leaf + 1 == num_leaves;
    for (int64_t k = 0; k < steps.leaf_k(); k += steps.step_k()) {
      const bool ends = k + steps.step_k() >= steps.leaf_k() && (num_completed > 0 || is_last_leaf);
      for (int64_t block = 0; block < tile.num_blocks; ++block) {
        float* sums = scratch + num_waiting * tile.num_sums() + block * tile.block_sums();
        const LeafEnd end = {table, is_last_leaf ? &sink : nullptr, sums - tile.num_sums(),
                             num_completed, tile.num_sums(), block};
        MultiplyChunk(steps, tile, block, leaf, k, sums,
                      ends ? TileSink{LeafEnd::Take, &end, is_last_leaf && sink.slow} : TileSink{});
      }
    }
  }
}

void StoreGated(const LinearTable& table, const ProductTile& tile, const BlockSums& sums, const Tensor& out) {
  const int64_t column = (tile.first_block + sums.block) * kHalfColumns;
  table.store_gated(
      {.sums = sums.data,
       .num_rows = sums.num_rows,
       .num_columns = static_cast<int>(std::min<int64_t>(kHalfColumns, out.dim(1) - column)),
       .out = out.At(tile.first_row + sums.first_row, column),
       .out_stride = out.row_stride(),
       .out_dtype = out.dtype()});
}

int64_t MaxRowsPerBlock(const LinearKernel& kernel) {
  return kMaxRowsPerBlock / kernel.format.tile_rows * kernel.format.tile_rows;
}

ProductGrid::ProductGrid(const LinearKernel& kernel, const LinearLayout& layout, int64_t num_rows,
                         int num_threads, const Options& options)
    : num_rows(num_rows), num_blocks(layout.num_blocks()) {
  const int64_t tile_rows = kernel.format.tile_rows;
  const int64_t max_rows = std::min(MaxRowsPerBlock(kernel), RoundUp(options.max_rows_per_block, tile_rows));
  const int64_t share = RoundUp((num_rows + num_threads - 1) / num_threads, tile_rows);
  const bool all_stay = PanelBytes(kernel.format, layout, max_rows) <= kMaxPackedBytes;
  rows_per_block = all_stay ? max_rows : std::clamp(share, RoundUp(kMinRowsPerBlock, tile_rows), max_rows);
  // Several tasks per thread even out threads that were held up.
  const int64_t unit = options.unit_blocks;
  const int64_t blocks = std::clamp<int64_t>(num_blocks / (4 * num_threads), 1, kMaxBlocksPerGroup);
  blocks_per_group = std::max<int64_t>(blocks / unit, 1) * unit;
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
