#include <algorithm>

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
  const LinearTable& table = LinearTableOf(arithmetic_);
  const LinearKernel& kernel = KernelOf(table, args.x.dtype());
  const LinearLayout gate_up(args.gate_up_shape), down(args.down_shape);
  const int64_t num_experts = args.gate_up.dim(0), num_tokens = args.x.dim(0);
  const int64_t num_entries = num_tokens * args.experts.dim(1), num_inner = gate_up.num_outputs();
  const int64_t inner_bytes = num_inner * static_cast<int64_t>(SizeOf(args.x.dtype()));

  // Workspace: x and the gated product as panels, the gated product as rows, the grouping.
  const auto aligned = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t x_row_bytes = PanelBytes(kernel.format, gate_up, 1);
  const int64_t inner_row_bytes = PanelBytes(kernel.format, down, 1);
  std::byte* const x_panels = shared_.Get<std::byte>(
      aligned(num_entries * x_row_bytes) + aligned(num_entries * inner_row_bytes) +
      aligned(num_entries * inner_bytes) + (num_experts + 1 + 2 * num_entries) * 4);
  std::byte* const inner_panels = x_panels + aligned(num_entries * x_row_bytes);
  std::byte* const inner = inner_panels + aligned(num_entries * inner_row_bytes);
  ExpertRows rows;
  rows.begin = reinterpret_cast<int32_t*>(inner + aligned(num_entries * inner_bytes));
  rows.token = rows.begin + num_experts + 1;
  rows.weight = reinterpret_cast<float*>(rows.token + num_entries);
  GroupByExpert(args, rows);

  pool_.ParallelFor(num_experts, [&](int64_t e, int) {
    const int32_t begin = rows.begin[e];
    PackPanel(kernel.format, gate_up,
              {.out = x_panels + begin * x_row_bytes,
               .x = args.x,
               .row_ids = rows.token + begin,
               .num_rows = rows.begin[e + 1] - begin});
  });

  // Inner columns of every expert in tasks of a few blocks.
  const int64_t groups_per_expert = (gate_up.num_blocks() + 3) / 4;
  pool_.ParallelFor(num_experts * groups_per_expert, [&](int64_t task, int thread) {
    const int64_t e = task / groups_per_expert, first_block = task % groups_per_expert * 4;
    const int64_t begin = rows.begin[e], num_rows = rows.begin[e + 1] - begin;
    const int64_t max_rows = ProductGrid(kernel, gate_up, num_rows, 1).rows_per_block;
    for (int64_t row = 0; row < num_rows; row += max_rows) {
      const ProductTile tile{
          .kernel = kernel,
          .layout = gate_up,
          .weight = static_cast<const std::byte*>(args.gate_up.raw()) + e * gate_up.packed_bytes(),
          .panel = {x_panels + begin * x_row_bytes, num_rows},
          .first_row = row,
          .num_rows = std::min(max_rows, num_rows - row),
          .first_block = first_block,
          .num_blocks = std::min<int64_t>(4, gate_up.num_blocks() - first_block)};
      float* sums = scratch_[thread].Get<float>(TreeScratchFloats(tile));
      MultiplyTree(table, tile, sums);
      StoreGated(table, tile, sums, inner + begin * inner_bytes);
    }
  });

  pool_.ParallelFor(num_experts, [&](int64_t e, int) {
    const int64_t begin = rows.begin[e], num_rows = rows.begin[e + 1] - begin;
    PackPanel(kernel.format, down,
              {.out = inner_panels + begin * inner_row_bytes,
               .x = ConstTensor(inner + begin * inner_bytes, args.x.dtype(), {num_rows, num_inner}),
               .row_ids = nullptr,
               .num_rows = num_rows});
  });

  // One task owns 32 output columns of every token and walks the experts in ascending order, so a
  // token's sum over its experts has one order whoever computes it.
  const int num_leaves = args.down_shape.num_leaves;
  const int64_t num_columns = args.down_shape.n, leaf_sums = num_tokens * kBlockColumns;
  pool_.ParallelFor(down.num_blocks(), [&](int64_t block, int thread) {
    const int64_t max_rows = ProductGrid(kernel, down, num_tokens, 1).rows_per_block;
    float* sums = scratch_[thread].Get<float>(num_leaves * leaf_sums +
                                              std::min(max_rows, num_tokens) * kBlockColumns);
    float* product = sums + num_leaves * leaf_sums;
    std::fill(sums, product, 0.0f);
    for (int64_t e = 0; e < num_experts; ++e) {
      const int64_t begin = rows.begin[e], num_rows = rows.begin[e + 1] - begin;
      for (int64_t row = 0; row < num_rows; row += max_rows) {
        const ProductTile tile{
            .kernel = kernel,
            .layout = down,
            .weight = static_cast<const std::byte*>(args.down.raw()) + e * down.packed_bytes(),
            .panel = {inner_panels + begin * inner_row_bytes, num_rows},
            .first_row = row,
            .num_rows = std::min(max_rows, num_rows - row),
            .first_block = block,
            .num_blocks = 1};
        for (int leaf = 0; leaf < num_leaves; ++leaf) {
          MultiplyLeaf(tile, leaf, product);
          for (int64_t r = 0; r < tile.num_rows; ++r) {
            const int64_t entry = begin + row + r;
            table.add_scaled(sums + leaf * leaf_sums + rows.token[entry] * kBlockColumns,
                             product + r * kBlockColumns, rows.weight[entry], kBlockColumns);
          }
        }
      }
    }
    for (int step = 1; step < num_leaves; step *= 2) {
      for (int leaf = 0; leaf < num_leaves; leaf += 2 * step) {
        table.add(sums + leaf * leaf_sums, sums + (leaf + step) * leaf_sums, leaf_sums);
      }
    }
    const int64_t column = block * kBlockColumns;
    table.store(
        {.sums = sums,
         .num_rows = num_tokens,
         .num_columns = static_cast<int>(std::min<int64_t>(kBlockColumns, num_columns - column)),
         .out = args.out.as<float>() + column,
         .out_stride = num_columns,
         .out_dtype = DType::kF32});
  });
}

}  // namespace plumbline
