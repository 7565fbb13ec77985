#include "kernels/ops.h"

namespace plumbline {
namespace {

bool IsAct(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

// A tensor whose rows may lie apart.
void CheckSpread(const ConstTensor& tensor, DType dtype, const Shape& shape) {
  PL_CHECK(!tensor.empty());
  PL_CHECK(tensor.dtype() == dtype);
  PL_CHECK(tensor.shape() == shape);
  PL_CHECK(tensor.row_stride() >= shape.dims[1]);
}

void CheckTensor(const ConstTensor& tensor, DType dtype, const Shape& shape) {
  CheckSpread(tensor, dtype, shape);
  PL_CHECK(tensor.is_dense());
}

// An optional tensor: empty, or as given.
void CheckOptional(const ConstTensor& tensor, DType dtype, const Shape& shape) {
  if (!tensor.empty()) CheckTensor(tensor, dtype, shape);
}

bool IsTreeSize(int64_t size) { return size == 1 || size == 2 || size == 4 || size == 8; }

void CheckSequences(const SequenceRows& sequences) {
  const int64_t num = sequences.num_sequences();
  CheckTensor(sequences.row_begin, DType::kI32, {num + 1});
  CheckTensor(sequences.start, DType::kI32, {num});
  CheckTensor(sequences.num_prompt_rows, DType::kI32, {num});
  CheckTensor(sequences.state_slot, DType::kI32, {num});
}

void CheckLinear(const LinearArgs& args, int64_t packed_bytes) {
  const int64_t rows = args.x.dim(0);
  PL_CHECK(!args.shape.gated);
  CheckTensor(args.out, DType::kF32, {rows, args.shape.n - args.num_rounded()});
  if (!args.rounded.empty()) CheckSpread(args.rounded, args.shape.dtype, {rows, args.num_rounded()});
  CheckSpread(args.x, args.shape.dtype, {rows, args.shape.k});
  CheckTensor(args.weight, DType::kU8, {packed_bytes});
  CheckOptional(args.bias, DType::kF32, {args.shape.n});
}

void CheckQkNormRope(const QkNormRopeArgs& args) {
  PL_CHECK(args.q.shape().rank == 3 && args.k_cache.shape().rank == 4);
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), head_dim = args.q.dim(2);
  const int64_t kv_heads = args.k_cache.dim(1);
  PL_CHECK(IsAct(args.q.dtype()) && heads + kv_heads > 0 && head_dim % 2 == 0);
  if (kv_heads > 0) {
    PL_CHECK(heads % kv_heads == 0);
    const Shape cache = {args.k_cache.dim(0), kv_heads, kBlockTokens, head_dim};
    CheckTensor(args.k_cache, args.q.dtype(), cache);
    CheckTensor(args.v_cache, args.q.dtype(), cache);
    CheckTensor(args.slots, DType::kI32, {rows});
  }
  CheckTensor(args.qkv, DType::kF32, {rows, head_dim * (heads * (args.gated ? 2 : 1) + 2 * kv_heads)});
  CheckOptional(args.q_norm, DType::kF32, {head_dim});
  CheckOptional(args.k_norm, DType::kF32, {head_dim});
  PL_CHECK(args.cos.dim(1) * 2 <= head_dim);
  CheckTensor(args.cos, DType::kF32, {rows, args.cos.dim(1)});
  CheckTensor(args.sin, DType::kF32, {rows, args.cos.dim(1)});
}

void CheckCausalConv(const CausalConvArgs& args) {
  PL_CHECK(args.state.shape().rank == 3 && IsAct(args.state.dtype()));
  const int64_t rows = args.out.dim(0), channels = args.out.dim(1), width = args.weight.dim(1);
  PL_CHECK(width >= 2);
  CheckTensor(args.out, DType::kF32, {rows, channels});
  CheckTensor(args.state, args.state.dtype(), {args.state.dim(0), channels, width - 1});
  CheckSpread(args.x, args.state.dtype(), {rows, channels});
  CheckTensor(args.weight, DType::kF32, {channels, width});
  CheckSequences(args.sequences);
}

void CheckGatedDeltaNet(const GatedDeltaNetArgs& args) {
  PL_CHECK(args.state.shape().rank == 4 && IsAct(args.out.dtype()));
  const int64_t rows = args.out.dim(0), heads = args.state.dim(1);
  const int64_t key_dim = args.state.dim(2), value_dim = args.state.dim(3);
  PL_CHECK(args.num_key_heads > 0 && heads % args.num_key_heads == 0);
  const int64_t channels = 2 * args.num_key_heads * key_dim + heads * value_dim;
  CheckSpread(args.out, args.out.dtype(), {rows, heads * value_dim});
  CheckTensor(args.state, DType::kF32, {args.state.dim(0), heads, key_dim, value_dim});
  CheckTensor(args.conv, DType::kF32, {rows, channels});
  CheckTensor(args.gates, DType::kF32, {rows, heads * value_dim + 2 * heads});
  CheckTensor(args.a_log, DType::kF32, {heads});
  CheckTensor(args.dt_bias, DType::kF32, {heads});
  CheckTensor(args.norm, DType::kF32, {value_dim});
  CheckSequences(args.sequences);
}

}  // namespace

void Ops::PackLinear(const PackLinearArgs& args) {
  PL_CHECK(IsTreeSize(args.shape.num_leaves) && IsAct(args.shape.dtype));
  PL_CHECK(!args.shape.gated || (args.shape.n % 2 == 0 && args.shape.num_leaves == 1));
  CheckTensor(args.out, DType::kU8, {PackedBytes(args.shape)});
  PL_CHECK(IsAct(args.source.dtype()) && args.source.shape().rank == 2);
  PL_CHECK(args.first_row >= 0 && args.first_row + args.source.dim(0) <= args.shape.n);
  PL_CHECK(args.first_column >= 0 && args.first_column + args.shape.k <= args.source.dim(1));
  if (args.source.dim(0) > 0) DoPackLinear(args);
}

void Ops::Linear(const LinearArgs& args) {
  CheckLinear(args, PackedBytes(args.shape));
  if (args.x.dim(0) > 0) DoLinear(args);
}

void Ops::GatedLinear(const GatedLinearArgs& args) {
  const int64_t rows = args.x.dim(0);
  PL_CHECK(args.shape.gated);
  CheckSpread(args.out, args.shape.dtype, {rows, args.shape.n / 2});
  CheckSpread(args.x, args.shape.dtype, {rows, args.shape.k});
  CheckTensor(args.weight, DType::kU8, {PackedBytes(args.shape)});
  if (rows > 0) DoGatedLinear(args);
}

void Ops::Embed(const EmbedArgs& args) {
  const int64_t rows = args.tokens.dim(0);
  PL_CHECK(IsAct(args.table.dtype()) && args.table.shape().rank == 2);
  CheckTensor(args.out, DType::kF32, {rows, args.table.dim(1)});
  CheckTensor(args.tokens, DType::kI32, {rows});
  if (rows > 0) DoEmbed(args);
}

void Ops::TreeSum(const TreeSumArgs& args) {
  PL_CHECK(IsTreeSize(args.partials.dim(0)));
  CheckTensor(args.partials, DType::kF32, {args.partials.dim(0), args.out.num_elements()});
  CheckTensor(args.out, DType::kF32, {args.out.num_elements()});
  if (args.out.num_elements() > 0) DoTreeSum(args);
}

void Ops::ReduceAdd(const ReduceAddArgs& args) {
  const int64_t rows = args.h.dim(0), hidden = args.h.dim(1);
  PL_CHECK(IsTreeSize(args.partials.dim(0)));
  CheckTensor(args.h, DType::kF32, {rows, hidden});
  CheckTensor(args.partials, DType::kF32, {args.partials.dim(0), rows, hidden});
  if (rows > 0) DoReduceAdd(args);
}

void Ops::ReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) {
  const int64_t rows = args.h.dim(0), hidden = args.h.dim(1);
  PL_CHECK(IsAct(args.out.dtype()));
  CheckSpread(args.out, args.out.dtype(), {rows, hidden});
  CheckTensor(args.h, DType::kF32, {rows, hidden});
  if (!args.partials.empty()) {
    PL_CHECK(IsTreeSize(args.partials.dim(0)));
    CheckTensor(args.partials, DType::kF32, {args.partials.dim(0), rows, hidden});
  }
  CheckTensor(args.weight, DType::kF32, {hidden});
  if (rows > 0) DoReduceAddRmsNorm(args);
}

void Ops::RmsNormRows(const RmsNormRowsArgs& args) {
  const int64_t rows = args.rows.dim(0), hidden = args.h.dim(1);
  PL_CHECK(IsAct(args.out.dtype()));
  CheckTensor(args.out, args.out.dtype(), {rows, hidden});
  CheckTensor(args.h, DType::kF32, {args.h.dim(0), hidden});
  CheckTensor(args.rows, DType::kI32, {rows});
  CheckTensor(args.weight, DType::kF32, {hidden});
  if (rows > 0) DoRmsNormRows(args);
}

void Ops::RopeTable(const RopeTableArgs& args) {
  const Shape shape = {args.positions.dim(0), args.inv_freq.dim(0)};
  CheckTensor(args.cos, DType::kF32, shape);
  CheckTensor(args.sin, DType::kF32, shape);
  CheckTensor(args.positions, DType::kI32, {shape[0]});
  CheckTensor(args.inv_freq, DType::kF32, {shape[1]});
  if (shape[0] > 0) DoRopeTable(args);
}

void Ops::QkNormRope(const QkNormRopeArgs& args) {
  CheckQkNormRope(args);
  if (args.q.dim(0) > 0) DoQkNormRope(args);
}

void Ops::QkvLinear(const QkvLinearArgs& args) {
  CheckLinear(args.linear, PackedBytes(args.linear.shape));
  CheckQkNormRope(args.rope);
  PL_CHECK(args.rope.qkv.raw() == args.linear.out.raw() && args.linear.rounded.empty());
  if (args.rope.q.dim(0) > 0) DoQkvLinear(args);
}

void Ops::DoQkvLinear(const QkvLinearArgs& args) {
  DoLinear(args.linear);
  DoQkNormRope(args.rope);
}

void Ops::Attention(const AttentionArgs& args) {
  PL_CHECK(args.q.shape().rank == 3 && args.k_cache.shape().rank == 4);
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), head_dim = args.q.dim(2);
  const int64_t kv_heads = args.k_cache.dim(1);
  PL_CHECK(IsAct(args.q.dtype()) && kv_heads > 0 && heads % kv_heads == 0 && head_dim % 2 == 0);
  const Shape cache = {args.k_cache.dim(0), kv_heads, kBlockTokens, head_dim};
  CheckSpread(args.out, args.q.dtype(), {rows, heads * head_dim});
  CheckTensor(args.k_cache, args.q.dtype(), cache);
  CheckTensor(args.v_cache, args.q.dtype(), cache);
  if (args.gated) {
    const int64_t gated_queries = 2 * heads * head_dim, keys_and_values = 2 * kv_heads * head_dim;
    PL_CHECK(args.qkv.dim(1) == gated_queries || args.qkv.dim(1) == gated_queries + keys_and_values);
    CheckTensor(args.qkv, DType::kF32, {rows, args.qkv.dim(1)});
  }
  CheckSequences(args.sequences);
  CheckTensor(args.sequences.block_table, DType::kI32,
              {args.sequences.num_sequences(), args.sequences.block_table.dim(1)});
  if (rows > 0) DoAttention(args);
}

void Ops::CausalConv(const CausalConvArgs& args) {
  CheckCausalConv(args);
  if (args.out.dim(0) > 0) DoCausalConv(args);
}

void Ops::GatedDeltaNet(const GatedDeltaNetArgs& args) {
  CheckGatedDeltaNet(args);
  if (args.out.dim(0) > 0) DoGatedDeltaNet(args);
}

void Ops::ConvGatedDeltaNet(const ConvGatedDeltaNetArgs& args) {
  CheckCausalConv(args.conv);
  CheckGatedDeltaNet(args.delta);
  PL_CHECK(args.delta.conv.raw() == args.conv.out.raw());
  if (args.delta.out.dim(0) > 0) DoConvGatedDeltaNet(args);
}

void Ops::DoConvGatedDeltaNet(const ConvGatedDeltaNetArgs& args) {
  DoCausalConv(args.conv);
  DoGatedDeltaNet(args.delta);
}

void Ops::MoeRoute(const MoeRouteArgs& args) {
  const int64_t rows = args.experts.dim(0), chosen = args.experts.dim(1);
  PL_CHECK(chosen >= 1 && chosen <= args.logits.dim(1));
  CheckTensor(args.experts, DType::kI32, {rows, chosen});
  CheckTensor(args.weights, DType::kF32, {rows, chosen});
  CheckTensor(args.logits, DType::kF32, {rows, args.logits.dim(1)});
  if (rows > 0) DoMoeRoute(args);
}

void Ops::MoeMlp(const MoeMlpArgs& args) {
  const int64_t rows = args.x.dim(0), experts = args.gate_up.dim(0);
  const LinearShape& up = args.gate_up_shape;
  const LinearShape& down = args.down_shape;
  PL_CHECK(up.gated && !down.gated && up.dtype == down.dtype && up.n == 2 * down.k && up.k == down.n);
  CheckTensor(args.out, DType::kF32, {rows, down.n});
  CheckSpread(args.x, up.dtype, {rows, up.k});
  CheckTensor(args.experts, DType::kI32, {rows, args.experts.dim(1)});
  CheckTensor(args.weights, DType::kF32, {rows, args.experts.dim(1)});
  CheckTensor(args.gate_up, DType::kU8, {experts, PackedBytes(up)});
  CheckTensor(args.down, DType::kU8, {experts, PackedBytes(down)});
  if (rows > 0) DoMoeMlp(args);
}

void Ops::ConcatColumns(const ConcatColumnsArgs& args) {
  PL_CHECK(args.parts.shape().rank == 3);
  const int64_t rows = args.out.dim(0);
  PL_CHECK(args.parts.dim(0) * args.parts.dim(2) >= args.out.dim(1));
  CheckTensor(args.out, DType::kF32, {rows, args.out.dim(1)});
  CheckTensor(args.parts, DType::kF32, {args.parts.dim(0), rows, args.parts.dim(2)});
  if (rows > 0) DoConcatColumns(args);
}

void Ops::Penalties(const PenaltiesArgs& args) {
  const int64_t rows = args.logits.dim(0), entries = args.token.dim(0);
  CheckTensor(args.logits, DType::kF32, {rows, args.logits.dim(1)});
  CheckTensor(args.entry_begin, DType::kI32, {rows + 1});
  for (const ConstTensor& tensor : {args.token, args.count, args.seen}) {
    CheckTensor(tensor, DType::kI32, {entries});
  }
  CheckTensor(args.bias, DType::kF32, {entries});
  for (const ConstTensor& tensor : {args.repetition, args.presence, args.frequency}) {
    CheckTensor(tensor, DType::kF32, {rows});
  }
  if (rows > 0 && entries > 0) DoPenalties(args);
}

void Ops::Sample(const SampleArgs& args) {
  const int64_t rows = args.logits.dim(0);
  CheckTensor(args.tokens, DType::kI32, {rows});
  CheckTensor(args.logits, DType::kF32, {rows, args.logits.dim(1)});
  for (const ConstTensor& tensor : {args.temperature, args.top_p, args.min_p}) {
    CheckTensor(tensor, DType::kF32, {rows});
  }
  CheckTensor(args.top_k, DType::kI32, {rows});
  CheckTensor(args.seed, DType::kI64, {rows});
  CheckTensor(args.position, DType::kI32, {rows});
  if (rows > 0) DoSample(args);
}

void Ops::Logprobs(const LogprobsArgs& args) {
  const int64_t rows = args.logits.dim(0);
  CheckTensor(args.target_logprobs, DType::kF32, {rows});
  CheckTensor(args.target_ranks, DType::kI32, {rows});
  CheckTensor(args.logits, DType::kF32, {rows, args.logits.dim(1)});
  CheckTensor(args.targets, DType::kI32, {rows});
  if (!args.top_ids.empty()) {
    PL_CHECK(args.top_ids.dim(1) >= 1 && args.top_ids.dim(1) <= args.logits.dim(1));
    CheckTensor(args.top_ids, DType::kI32, {rows, args.top_ids.dim(1)});
    CheckTensor(args.top_logprobs, DType::kF32, {rows, args.top_ids.dim(1)});
  }
  if (rows > 0) DoLogprobs(args);
}

}  // namespace plumbline
