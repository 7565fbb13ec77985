// QkNormRope, and QkvLinear, which finishes the heads of a few columns while their sums are in the cache.
#include <algorithm>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/fetch.h"
#include "kernels/cpu/linear_driver.h"
#include "kernels/cpu/sequence_kernels.h"

namespace plumbline {
namespace {

// A row of qkv in pieces of one head's width: per query head q (and gate), then the k heads, then the v heads.
class QkvPieces {
 public:
  QkvPieces(const QkNormRopeArgs& args, const SequenceKernels& kernels)
      : args_(args),
        norm_rope_(kernels.norm_rope[ActIndex(args.q.dtype())]),
        num_heads_(args.q.dim(1)),
        num_kv_heads_(args.k_cache.dim(1)),
        num_query_pieces_(num_heads_ * (args.gated ? 2 : 1)) {}

  int64_t width() const { return args_.q.dim(2); }
  int64_t count() const { return num_query_pieces_ + 2 * num_kv_heads_; }
  bool IsGate(int64_t piece) const { return args_.gated && piece < num_query_pieces_ && piece % 2 == 1; }

  // Asks for the memory that Finish writes.
  void Fetch(int64_t t, int64_t piece) const {
    FetchForWriting(PlaceOf(t, piece), width() * static_cast<int64_t>(SizeOf(args_.q.dtype())));
  }

  // Brings a piece of row t, not a gate, to where it belongs. x, scratch: [width()].
  void Finish(int64_t t, int64_t piece, const float* x, float* scratch) const {
    const int64_t half = args_.cos.dim(1);
    const bool is_value = piece >= num_query_pieces_ + num_kv_heads_;
    NormRopeTask task = {.x = x,
                         .norm = is_value ? nullptr : Optional(piece < num_query_pieces_ ? args_.q_norm : args_.k_norm),
                         .cos = args_.cos.as<float>() + t * half,
                         .sin = args_.sin.as<float>() + t * half,
                         .scratch = scratch,
                         .head_dim = static_cast<int>(width()),
                         .rotary_half = is_value ? 0 : static_cast<int>(half),
                         .norm_offset = args_.norm_offset,
                         .eps = args_.eps};
    task.out = PlaceOf(t, piece);
    norm_rope_(task);
  }

 private:
  std::byte* PlaceOf(int64_t t, int64_t piece) const {
    if (piece < num_query_pieces_) {
      const int64_t head = args_.gated ? piece / 2 : piece;
      return At(args_.q, (t * num_heads_ + head) * width());
    }
    const int64_t kv_piece = piece - num_query_pieces_;
    if (kv_piece < num_kv_heads_) return At(args_.k_cache, CacheRow(t, kv_piece));
    return At(args_.v_cache, CacheRow(t, kv_piece - num_kv_heads_));
  }
  static const float* Optional(const ConstTensor& tensor) {
    return tensor.empty() ? nullptr : tensor.as<float>();
  }
  int64_t CacheRow(int64_t t, int64_t kv_head) const {
    const int64_t slot = args_.slots.as<int32_t>()[t];
    return ((slot / kBlockTokens * num_kv_heads_ + kv_head) * kBlockTokens + slot % kBlockTokens) * width();
  }

  const QkNormRopeArgs& args_;
  void (*const norm_rope_)(const NormRopeTask& task);
  const int64_t num_heads_, num_kv_heads_, num_query_pieces_;
};

}  // namespace

void CpuOps::DoQkNormRope(const QkNormRopeArgs& args) {
  const QkvPieces pieces(args, SequenceKernelsOf(arithmetic_));
  pool_.ParallelFor(args.q.dim(0), [&](int64_t t, int thread) {
    float* scratch = scratch_[thread].Get<float>(pieces.width());
    const float* row = args.qkv.as<float>() + t * args.qkv.dim(1);
    for (int64_t piece = 0; piece < pieces.count(); ++piece) {
      if (!pieces.IsGate(piece)) pieces.Finish(t, piece, row + piece * pieces.width(), scratch);
    }
  });
}

void CpuOps::DoQkvLinear(const QkvLinearArgs& args) {
  constexpr int64_t kRowsAhead = 4;
  const LinearArgs& linear = args.linear;
  const QkvPieces pieces(args.rope, SequenceKernelsOf(arithmetic_));
  const int64_t width = pieces.width(), blocks_per_piece = width / kBlockColumns;
  if (width % kBlockColumns != 0) {
    DoLinear(linear);
    return DoQkNormRope(args.rope);
  }
  const LinearTable& table = LinearTableOf(arithmetic_);
  const LinearKernel& kernel = KernelOf(table, linear.shape.dtype);
  const LinearLayout layout(linear.shape);
  const Panel panel = PreparePanel(pool_, shared_, kernel.format, layout, linear.x);
  // 256 rows of some 256 columns: f32 sums that stay in the cache.
  const ProductGrid grid(kernel, layout, panel.num_rows, pool_.num_threads(),
                         {.unit_blocks = blocks_per_piece, .max_rows_per_block = 256});
  const float* bias = linear.bias.empty() ? nullptr : linear.bias.as<float>();
  pool_.ParallelFor(grid.num_tasks(), [&](int64_t task, int thread) {
    ProductTile tile{.kernel = kernel,
                     .layout = layout,
                     .weight = static_cast<const std::byte*>(linear.weight.raw()),
                     .panel = panel};
    grid.Place(task, tile);
    const int64_t piece_floats = tile.num_rows * width;
    float* sums = scratch_[thread].Get<float>(tile.num_blocks / blocks_per_piece * piece_floats + width +
                                              TreeScratchFloats(tile));
    float* scratch = sums + tile.num_blocks / blocks_per_piece * piece_floats;
    const int64_t first_piece = tile.first_block / blocks_per_piece;
    MultiplyTree(table, tile, scratch + width, [&](const BlockSums& block) {
      const int64_t column = (tile.first_block + block.block) * kBlockColumns;
      const int64_t piece = column / width;
      StoreArgs store = {.sums = block.data,
                         .num_rows = block.num_rows,
                         .num_columns = kBlockColumns,
                         .out_dtype = DType::kF32,
                         .bias = bias ? bias + column : nullptr};
      if (pieces.IsGate(piece)) {
        store.out = linear.out.as<float>() + (tile.first_row + block.first_row) * linear.shape.n + column;
        store.out_stride = linear.shape.n;
      } else {
        store.out = sums + (piece - first_piece) * piece_floats + block.first_row * width + column % width;
        store.out_stride = width;
      }
      table.store(store);
    });
    for (int64_t piece = first_piece; piece < first_piece + tile.num_blocks / blocks_per_piece; ++piece) {
      const float* rows = sums + (piece - first_piece) * piece_floats;
      for (int64_t r = 0; r < tile.num_rows && !pieces.IsGate(piece); ++r) {
        if (r + kRowsAhead < tile.num_rows) pieces.Fetch(tile.first_row + r + kRowsAhead, piece);
        pieces.Finish(tile.first_row + r, piece, rows + r * width, scratch);
      }
    }
  });
}

}  // namespace plumbline
