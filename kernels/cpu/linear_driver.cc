#include "kernels/cpu/linear_driver.h"

#include <algorithm>
#include <bit>

namespace plumbline {
namespace {

constexpr int64_t kMinRowsPerBlock = 128;  // fewer rows wait for the weights
constexpr int64_t kMaxRowsPerBlock = 512;
constexpr int64_t kMaxBlocksPerGroup = 8;

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// One product of a rectangle: a block times a chunk of the rows, from k of a leaf on.
struct Step {
  int64_t block;
  int leaf;
  int64_t k;
};

// The products of one rectangle in their order, and where they find their operands.
class ProductSteps {
 public:
  explicit ProductSteps(const ProductTile& tile)
      : tile_(tile), element_bytes_(static_cast<int64_t>(SizeOf(tile.kernel.format.dtype))),
        leaf_k_(tile.layout.padded_leaf_k()), is_one_row_tile_(IsOneRowTile(tile)),
        step_k_(is_one_row_tile_ ? leaf_k_ : ChunkK(tile.kernel.format, tile.layout)),
        rows_stay_(tile.num_rows * leaf_k_ * element_bytes_ <= kMaxPackedBytes) {}

  bool ends_leaf(const Step& step) const { return step.k + step_k_ >= leaf_k_; }
  // A block's sums of a leaf are finished before those of the next block begin.
  bool finishes_blocks() const { return rows_stay_ || step_k_ >= leaf_k_; }

  // All of one leaf, then of the next. Rows that stay in the second-level cache: block after block, so that the sums stay
  // too; else chunk after chunk.
  Step Next(Step step) const {
    if (rows_stay_) {
      step.k += step_k_;
      if (step.k < leaf_k_) return step;
      step.k = 0;
      if (++step.block < tile_.num_blocks) return step;
      step.block = 0;
    } else {
      if (++step.block < tile_.num_blocks) return step;
      step.block = 0;
      step.k += step_k_;
      if (step.k < leaf_k_) return step;
      step.k = 0;
    }
    ++step.leaf;
    return step;
  }

  int64_t NumK(const Step& step) const { return std::min(step_k_, leaf_k_ - step.k); }
  const std::byte* Panel(const Step& step) const {
    const int64_t column = step.leaf * leaf_k_ + step.k;
    if (tile_.panel.row_bytes > 0) {
      return tile_.panel.data + tile_.first_row * tile_.panel.row_bytes + column * element_bytes_;
    }
    return tile_.panel.data + (column * tile_.panel.num_rows + tile_.first_row * NumK(step)) * element_bytes_;
  }
  UpcomingBytes Weight(const Step& step) const {
    const int64_t block = tile_.first_block + step.block;
    const int64_t begin = tile_.layout.offset(block, step.leaf, step.k);
    return {tile_.weight + begin, tile_.layout.offset(block, step.leaf, step.k + NumK(step)) - begin};
  }
  UpcomingBytes UpcomingWeight(const Step& step) const {
    if (is_one_row_tile_) {
      const UpcomingBytes now = Weight(step);
      return {static_cast<const std::byte*>(now.data) + kStreamAheadBytes, now.num_bytes};
    }
    const Step next = Next(step);
    if (next.leaf < tile_.layout.shape().num_leaves) return Weight(next);
    const bool is_last = tile_.first_block + tile_.num_blocks >= tile_.layout.num_blocks();
    return is_last ? UpcomingBytes{} : Weight({.block = tile_.num_blocks, .leaf = 0, .k = 0});
  }

 private:
  // A tile: it is then loaded in the order in which it comes. Further ahead, prefetches get in the way of the
  // processor's own.
  static constexpr int64_t kStreamAheadBytes = 1 << 10;

  // One row tile reads each weight once: in the order in which it lies in memory, a whole leaf at a time (chunks of one row
  // tile lie one after another). More rows take turns with one chunk of a block.
  static bool IsOneRowTile(const ProductTile& tile) {
    return tile.num_rows <= tile.kernel.format.tile_rows && tile.panel.num_rows == tile.num_rows;
  }

  const ProductTile& tile_;
  const int64_t element_bytes_;
  const int64_t leaf_k_;
  const bool is_one_row_tile_;
  const int64_t step_k_;
  const bool rows_stay_;
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

void MultiplyStep(const ProductSteps& steps, const ProductTile& tile, const Step& step, float* out, TileSink sink) {
  tile.kernel.multiply({.panel = steps.Panel(step),
                        .panel_row_bytes = tile.panel.row_bytes,
                        .weight = steps.Weight(step).data,
                        .num_k = steps.NumK(step),
                        .num_rows = tile.num_rows,
                        .out = out,
                        .accumulate = step.k > 0,
                        .sink = sink,
                        .upcoming_weight = steps.UpcomingWeight(step)});
}

}  // namespace

void MultiplyLeaf(const ProductTile& tile, int leaf, float* out) {
  const ProductSteps steps(tile);
  for (Step step = {0, leaf, 0}; step.leaf == leaf; step = steps.Next(step)) {
    MultiplyStep(steps, tile, step, out + step.block * tile.block_sums(), {});
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
  for (Step step = {}; step.leaf < num_leaves; step = steps.Next(step)) {
    const int num_waiting = std::popcount(static_cast<unsigned>(step.leaf));
    const int num_completed = std::countr_one(static_cast<unsigned>(step.leaf));
    const bool is_last_leaf = step.leaf + 1 == num_leaves;
    const bool waits = num_completed == 0 && !is_last_leaf;
    float* own = scratch + num_waiting * tile.num_sums();
    const int64_t of_block = step.block * tile.block_sums();
    // Sums that do not wait are gone before the next block's begin, and share their memory.
    float* sums = own + (waits || !steps.finishes_blocks() ? of_block : 0);
    const LeafEnd end = {table, is_last_leaf ? &sink : nullptr, own - tile.num_sums() + of_block,
                         num_completed, tile.num_sums(), step.block};
    const bool is_taken = steps.ends_leaf(step) && !waits;
    MultiplyStep(steps, tile, step, sums, is_taken ? TileSink{LeafEnd::Take, &end} : TileSink{});
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
