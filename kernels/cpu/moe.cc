#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/linear_driver.h"
#include "kernels/cpu/simd_scalar.h"
#include "kernels/cpu/vector_math.h"

namespace plumbline {
namespace {

// The rows of a step sorted by expert: expert e has entries [begin[e], begin[e + 1]), by ascending
// token.
struct ExpertRows {
  int32_t* begin;  // [E + 1]
  int32_t* token;  // [T * K]
  float* weight;   // [T * K]
};

void GroupByExpert(const MoeMlpArgs& args, ExpertRows& rows) {
  const int64_t num_experts = args.gate_up.dim(0), num_tokens = args.x.dim(0),
                top_k = args.experts.dim(1);
  const int32_t* experts = args.experts.as<int32_t>();
  const float* weights = args.weights.as<float>();
  std::fill(rows.begin, rows.begin + num_experts + 1, 0);
  for (int64_t i = 0; i < num_tokens * top_k; ++i) {
    PL_CHECK(experts[i] >= 0 && experts[i] < num_experts);
    ++rows.begin[experts[i]];
  }
  int32_t end = 0;
  for (int64_t e = 0; e <= num_experts;
       ++e) {  // counts -> ends; filling from the back turns ends into begins
    end += rows.begin[e];
    rows.begin[e] = end;
  }
  for (int64_t i = num_tokens * top_k - 1; i >= 0; --i) {
    const int32_t slot = --rows.begin[experts[i]];
    rows.token[slot] = static_cast<int32_t>(i / top_k);
    rows.weight[slot] = weights[i];
  }
}

// p: [num_experts], of the calling thread.
void RouteToken(const float* logits, int64_t num_experts, int64_t top_k, bool renormalize, float* p,
                int32_t* experts, float* weights) {
  const float max = *std::max_element(logits, logits + num_experts);
  float sum = 0;
  for (int64_t e = 0; e < num_experts; ++e) sum += p[e] = Exp<Scalar>(logits[e] - max);
  int64_t found = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    p[e] /= sum;
    if (found == top_k && !(p[e] > p[experts[top_k - 1]])) continue;
    int64_t place = found < top_k
                        ? found++
                        : top_k - 1;  // by descending p; an equal p stays behind the lower id
    for (; place > 0 && p[e] > p[experts[place - 1]]; --place) experts[place] = experts[place - 1];
    experts[place] = static_cast<int32_t>(e);
  }
  std::sort(experts, experts + top_k);
  float chosen = 0;
  for (int64_t i = 0; i < top_k; ++i) chosen += p[experts[i]];
  for (int64_t i = 0; i < top_k; ++i)
    weights[i] = renormalize ? p[experts[i]] / chosen : p[experts[i]];
}

// One call of MoeMlp: what its passes share.
class MoeMlpCall {
 public:
  MoeMlpCall(const MoeMlpArgs& args, const LinearTable& table, ThreadPool& pool,
             std::vector<Workspace>& scratch, Workspace& workspace)
      : args_(args),
        table_(table),
        pool_(pool),
        scratch_(scratch),
        kernel_(KernelOf(table, args.x.dtype())),
        gate_up_(args.gate_up_shape),
        down_(args.down_shape),
        num_experts_(args.gate_up.dim(0)),
        num_tokens_(args.x.dim(0)),
        x_row_bytes_(PanelBytes(kernel_.format, gate_up_, 1)),
        inner_row_bytes_(gate_up_.num_outputs() * static_cast<int64_t>(SizeOf(args.x.dtype()))),
        inner_panel_row_bytes_(PanelBytes(kernel_.format, down_, 1)) {
    const int64_t num_entries = num_tokens_ * args.experts.dim(1);
    const auto aligned = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    const int64_t x_bytes = aligned(num_entries * x_row_bytes_);
    const int64_t inner_bytes = aligned(num_entries * inner_row_bytes_);
    const int64_t panel_bytes = aligned(num_entries * inner_panel_row_bytes_);
    x_panels_ = workspace.Get<std::byte>(x_bytes + inner_bytes + panel_bytes +
                                         (num_experts_ + 1 + 2 * num_entries) * 4);
    inner_ = x_panels_ + x_bytes;
    inner_panels_ = inner_ + inner_bytes;
    rows_.begin = reinterpret_cast<int32_t*>(inner_panels_ + panel_bytes);
    rows_.token = rows_.begin + num_experts_ + 1;
    rows_.weight = reinterpret_cast<float*>(rows_.token + num_entries);
    GroupByExpert(args, rows_);
  }

  // The rows of x of every expert as a panel of its own.
  void GatherInputs() {
    pool_.ParallelFor(num_experts_, [&](int64_t e, int) {
      PackPanel(kernel_.format, gate_up_,
                {.out = x_panels_ + rows_.begin[e] * x_row_bytes_,
                 .x = args_.x,
                 .row_ids = rows_.token + rows_.begin[e],
                 .num_rows = NumRows(e)});
    });
  }

  // inner = silu(x Wg^T) * (x Wu^T), by expert and a few blocks of columns.
  void ComputeInner() {
    constexpr int64_t kBlocksPerTask = 4;
    const int64_t tasks_per_expert = (gate_up_.num_blocks() + kBlocksPerTask - 1) / kBlocksPerTask;
    pool_.ParallelFor(num_experts_ * tasks_per_expert, [&](int64_t task, int thread) {
      const int64_t e = task / tasks_per_expert;
      const int64_t first_block = task % tasks_per_expert * kBlocksPerTask;
      const Panel panel = {x_panels_ + rows_.begin[e] * x_row_bytes_, NumRows(e)};
      const auto* weights = static_cast<const std::byte*>(args_.gate_up.raw());
      ForRowBlocks(panel, gate_up_, weights + e * gate_up_.packed_bytes(), [&](ProductTile tile) {
        tile.first_block = first_block;
        tile.num_blocks = std::min(kBlocksPerTask, gate_up_.num_blocks() - first_block);
        float* scratch = scratch_[thread].Get<float>(TreeScratchFloats(tile));
        MultiplyTree(table_, tile, scratch, [&](const BlockSums& sums) {
          StoreGated(table_, tile, sums, Inner(e));
        });
      });
    });
  }

  void GatherInner() {
    pool_.ParallelFor(num_experts_, [&](int64_t e, int) {
      PackPanel(kernel_.format, down_,
                {.out = inner_panels_ + rows_.begin[e] * inner_panel_row_bytes_,
                 .x = Inner(e),
                 .row_ids = nullptr,
                 .num_rows = NumRows(e)});
    });
  }

  // One task owns a block of output columns of every token and walks the experts in ascending
  // order, so a token's sum over its experts has one order whoever computes it.
  void ComputeOutput() {
    const int num_leaves = args_.down_shape.num_leaves;
    const int64_t leaf_sums = num_tokens_ * kBlockColumns;
    pool_.ParallelFor(down_.num_blocks(), [&](int64_t block, int thread) {
      float* sums = scratch_[thread].Get<float>((num_leaves + 1) * leaf_sums);  // and one product
      std::fill(sums, sums + num_leaves * leaf_sums, 0.0f);
      for (int64_t e = 0; e < num_experts_; ++e) {
        AddExpert(e, block, sums, sums + num_leaves * leaf_sums);
      }
      for (int step = 1; step < num_leaves; step *= 2) {
        for (int leaf = 0; leaf < num_leaves; leaf += 2 * step) {
          table_.add(sums + leaf * leaf_sums, sums + (leaf + step) * leaf_sums, leaf_sums);
        }
      }
      const int64_t column = block * kBlockColumns, num_columns = args_.down_shape.n;
      table_.store(
          {.sums = sums,
           .num_rows = num_tokens_,
           .num_columns = static_cast<int>(std::min<int64_t>(kBlockColumns, num_columns - column)),
           .out = args_.out.as<float>() + column,
           .out_stride = num_columns,
           .out_dtype = DType::kF32});
    });
  }

 private:
  int64_t NumRows(int64_t e) const { return rows_.begin[e + 1] - rows_.begin[e]; }
  Tensor Inner(int64_t e) const {
    return {inner_ + rows_.begin[e] * inner_row_bytes_, args_.x.dtype(), {NumRows(e), gate_up_.num_outputs()}};
  }

  // Calls fn with a tile of every block of rows; the columns are left to fn.
  template <typename Fn>
  void ForRowBlocks(const Panel& panel, const LinearLayout& layout, const std::byte* weight,
                    Fn fn) {
    const int64_t max_rows = MaxRowsPerBlock(kernel_);
    for (int64_t row = 0; row < panel.num_rows; row += max_rows) {
      fn({.kernel = kernel_,
          .layout = layout,
          .weight = weight,
          .panel = panel,
          .first_row = row,
          .num_rows = std::min(max_rows, panel.num_rows - row)});
    }
  }

  // sums[leaf, token] += weight of the expert * its output, leaf by leaf.
  void AddExpert(int64_t e, int64_t block, float* sums, float* product) {
    const int64_t begin = rows_.begin[e];
    const Panel panel = {inner_panels_ + begin * inner_panel_row_bytes_, NumRows(e)};
    const auto* weights = static_cast<const std::byte*>(args_.down.raw());
    ForRowBlocks(panel, down_, weights + e * down_.packed_bytes(), [&](ProductTile tile) {
      tile.first_block = block;
      tile.num_blocks = 1;
      for (int leaf = 0; leaf < args_.down_shape.num_leaves; ++leaf) {
        MultiplyLeaf(tile, leaf, product);
        for (int64_t r = 0; r < tile.num_rows; ++r) {
          const int64_t entry = begin + tile.first_row + r;
          table_.add_scaled(sums + (leaf * num_tokens_ + rows_.token[entry]) * kBlockColumns,
                            product + r * kBlockColumns, rows_.weight[entry], kBlockColumns);
        }
      }
    });
  }

  const MoeMlpArgs& args_;
  const LinearTable& table_;
  ThreadPool& pool_;
  std::vector<Workspace>& scratch_;
  const LinearKernel& kernel_;
  const LinearLayout gate_up_, down_;
  const int64_t num_experts_, num_tokens_;
  const int64_t x_row_bytes_, inner_row_bytes_, inner_panel_row_bytes_;
  std::byte *x_panels_, *inner_,
      *inner_panels_;  // by expert: panels of x, gated rows, their panels
  ExpertRows rows_;
};

}  // namespace

void CpuOps::DoMoeRoute(const MoeRouteArgs& args) {
  const int64_t num_tokens = args.logits.dim(0), num_experts = args.logits.dim(1),
                top_k = args.experts.dim(1);
  constexpr int64_t kTokensPerTask = 16;
  pool_.ParallelFor((num_tokens + kTokensPerTask - 1) / kTokensPerTask, [&](int64_t task,
                                                                            int thread) {
    float* p = scratch_[thread].Get<float>(num_experts);
    const int64_t end = std::min(num_tokens, (task + 1) * kTokensPerTask);
    for (int64_t t = task * kTokensPerTask; t < end; ++t) {
      RouteToken(args.logits.as<float>() + t * num_experts, num_experts, top_k, args.renormalize, p,
                 args.experts.as<int32_t>() + t * top_k, args.weights.as<float>() + t * top_k);
    }
  });
}

void CpuOps::DoMoeMlp(const MoeMlpArgs& args) {
  MoeMlpCall call(args, LinearTableOf(arithmetic_), pool_, scratch_, shared_);
  call.GatherInputs();
  call.ComputeInner();
  call.GatherInner();
  call.ComputeOutput();
}

}  // namespace plumbline
