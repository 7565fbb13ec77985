#include "kernels/op_cost.h"

#include <set>
#include <tuple>

namespace plumbline {
namespace {

double Bytes(const ConstTensor& tensor) {
  if (tensor.empty()) return 0;
  return static_cast<double>(tensor.num_elements() * static_cast<int64_t>(SizeOf(tensor.dtype())));
}

// All tensors of the arguments as a whole.
template <typename Args>
OpCost AllBytes(Args args) {
  return {.bytes = std::apply([](const auto&... tensor) { return (Bytes(tensor) + ...); }, args.tensors())};
}

double Product(const LinearShape& shape, int64_t rows) { return 2.0 * static_cast<double>(rows * shape.n) * shape.k; }

// Of one head of a chunk in the chunked delta rule, a row meets so many rows of its chunk on average.
constexpr double kMeanEarlierRows = (kChunkTokens + 1) / 2.0;

}  // namespace

OpCost CostOf(const PackLinearArgs& args) { return {.bytes = 2 * Bytes(args.source)}; }

OpCost CostOf(const LinearArgs& args) {
  OpCost cost = AllBytes(args);
  cost.flops = Product(args.shape, args.x.dim(0));
  return cost;
}

OpCost CostOf(const GatedLinearArgs& args) {
  OpCost cost = AllBytes(args);
  cost.flops = Product(args.shape, args.x.dim(0));
  return cost;
}

OpCost CostOf(const EmbedArgs& args) {
  const double elements = static_cast<double>(args.out.num_elements());
  return {.bytes = Bytes(args.out) + Bytes(args.tokens) + elements * static_cast<double>(SizeOf(args.table.dtype()))};
}

OpCost CostOf(const TreeSumArgs& args) { return AllBytes(args); }

OpCost CostOf(const ReduceAddArgs& args) {
  OpCost cost = AllBytes(args);
  cost.bytes += Bytes(args.h);  // read and written
  return cost;
}

OpCost CostOf(const ReduceAddRmsNormArgs& args) {
  OpCost cost = AllBytes(args);
  if (!args.partials.empty()) cost.bytes += Bytes(args.h);
  return cost;
}

OpCost CostOf(const RmsNormRowsArgs& args) {
  const double row = static_cast<double>(args.h.dim(1)) * sizeof(float);
  return {.bytes = Bytes(args.out) + Bytes(args.weight) + static_cast<double>(args.rows.dim(0)) * row};
}

OpCost CostOf(const RopeTableArgs& args) { return AllBytes(args); }

OpCost CostOf(const QkNormRopeArgs& args) {
  const double kv_rows = static_cast<double>(args.q.dim(0) * args.k_cache.dim(1) * args.k_cache.dim(3));
  return {.bytes = Bytes(args.q) + Bytes(args.qkv) + Bytes(args.cos) + Bytes(args.sin) +
                   2 * kv_rows * static_cast<double>(SizeOf(args.k_cache.dtype()))};
}

OpCost CostOf(const QkvLinearArgs& args) {
  OpCost cost = CostOf(args.linear);
  const double gates = args.rope.gated ? static_cast<double>(args.rope.q.num_elements()) * sizeof(float) : 0;
  cost.bytes += CostOf(args.rope).bytes - Bytes(args.rope.qkv) - Bytes(args.linear.out) + gates;
  return cost;
}

OpCost CostOf(const AttentionArgs& args) {
  const double kv_row = static_cast<double>(args.k_cache.dim(1) * args.k_cache.dim(3) * SizeOf(args.k_cache.dtype()));
  const double gates = args.gated ? static_cast<double>(args.q.num_elements()) * sizeof(float) : 0;
  OpCost cost = {.bytes = Bytes(args.out) + Bytes(args.q) + gates};
  const int32_t *row_begin = args.sequences.row_begin.as<int32_t>(), *start = args.sequences.start.as<int32_t>();
  for (int64_t s = 0; s < args.sequences.num_sequences(); ++s) {
    const double rows = row_begin[s + 1] - row_begin[s], end = start[s] + rows;
    cost.bytes += 2 * end * kv_row;
    cost.flops += 4.0 * static_cast<double>(args.q.dim(1) * args.q.dim(2)) * rows * (end - (rows - 1) / 2);
  }
  return cost;
}

OpCost CostOf(const CausalConvArgs& args) {
  const double inputs = static_cast<double>(args.x.num_elements()), width = static_cast<double>(args.weight.dim(1));
  const double state = static_cast<double>(args.state.dim(1) * args.state.dim(2) * SizeOf(args.state.dtype()));
  return {.bytes = Bytes(args.out) + Bytes(args.x) + Bytes(args.weight) +
                   2 * state * static_cast<double>(args.sequences.num_sequences()),
          .flops = 2 * width * inputs};
}

OpCost CostOf(const GatedDeltaNetArgs& args) {
  const double heads = static_cast<double>(args.state.dim(1)), key_heads = static_cast<double>(args.num_key_heads);
  const double key_dim = static_cast<double>(args.state.dim(2)), value_dim = static_cast<double>(args.state.dim(3));
  const double state = heads * key_dim * value_dim;
  OpCost cost = {.bytes = Bytes(args.out) + Bytes(args.conv) + Bytes(args.gates)};
  const int32_t* row_begin = args.sequences.row_begin.as<int32_t>();
  for (int64_t s = 0; s < args.sequences.num_sequences(); ++s) {
    const double rows = row_begin[s + 1] - row_begin[s];
    const double prompt = args.sequences.num_prompt_rows.as<int32_t>()[s];
    cost.bytes += 2 * state * sizeof(float);
    // K S, Q S and S += K^T X; K K^T and Q K^T below the diagonal; the triangular solve and the weighted values.
    cost.flops += prompt * (6 * state + 4 * kMeanEarlierRows * (key_heads * key_dim + heads * value_dim));
    cost.flops += (rows - prompt) * 6 * state;
  }
  return cost;
}

OpCost CostOf(const ConvGatedDeltaNetArgs& args) {
  OpCost cost = CostOf(args.conv);
  cost += CostOf(args.delta);
  cost.bytes -= 2 * Bytes(args.conv.out);
  return cost;
}

OpCost CostOf(const MoeRouteArgs& args) { return AllBytes(args); }

OpCost CostOf(const MoeMlpArgs& args) {
  const int64_t num_rows = args.x.dim(0), chosen = args.experts.num_elements();
  const int32_t* ids = args.experts.as<int32_t>();
  const double distinct = static_cast<double>(std::set<int32_t>(ids, ids + chosen).size());
  const double expert = (Bytes(args.gate_up) + Bytes(args.down)) / static_cast<double>(args.gate_up.dim(0));
  const double per_row = Product(args.gate_up_shape, 1) + Product(args.down_shape, 1);
  return {.bytes = Bytes(args.out) + Bytes(args.x) + distinct * expert,
          .flops = num_rows == 0 ? 0 : static_cast<double>(chosen) * per_row};
}

OpCost CostOf(const ConcatColumnsArgs& args) { return AllBytes(args); }
OpCost CostOf(const PenaltiesArgs& args) { return {.bytes = AllBytes(args).bytes - Bytes(args.logits)}; }
OpCost CostOf(const SampleArgs& args) { return AllBytes(args); }
OpCost CostOf(const LogprobsArgs& args) { return AllBytes(args); }

}  // namespace plumbline
