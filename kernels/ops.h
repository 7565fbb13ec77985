// Ops: every tensor operation of the forward pass. THE contract between models and backends: one Args struct and
// one method per op. `reference/` is the specification in plain loops; the other backends are judged against it.
//
// Letters: T rows (tokens) of a step, S sequences, D hidden, F feed-forward, V vocabulary, Nq/Nkv query/KV heads of
// this rank, H head dim, Hk/Hv gated-delta-net key/value heads of this rank, P/Q their key/value dims, C conv channels
// (2*Hk*P + Hv*Q), B tokens of a KV block, E experts, L leaves or subtrees. All of them are this rank's own parts.
//
// "act" is the activation dtype of the run: the weights' own bf16 or f16, or f32 (--compute-dtype f32).
// Exactness, for every backend: row i of an output is a function of row i's inputs (and its own sequence's cache)
// alone, bit for bit: never of T, of other rows, of thread count, or of which rank holds which columns. Sums are f32
// in an order fixed by the op's description and the backend's arithmetic() name.
//
// Roles: the leading num_generated rows of a linear were sampled by the engine, the others are prompt. A backend may
// sum the two in different orders; a row's bits depend on its own role, never on how many rows have which.
//
// Tensors are dense; of those that say "spread" the rows may lie further apart (Tensor::row_stride).
//
// Methods enqueue on the device's stream. Shapes and dtypes are checked once, here; a violation is a bug and stops the
// process. Argument memory belongs to the caller. One thread calls the ops of one backend.
#pragma once

#include <cstdint>
#include <string_view>
#include <tuple>

#include "kernels/tensor.h"

namespace plumbline {

inline constexpr int kNumLeaves = 8;         // of a row-parallel linear's K and of the vocabulary, at every TP size
inline constexpr int kBlockTokens = 64;      // B: tokens of a KV block; also the prompt grid
inline constexpr int kChunkTokens = 64;      // chunk of the gated delta rule, on absolute positions
inline constexpr int kSegmentTokens = 256;   // KV tokens of one attention partial, on absolute positions

// ---- linear ---------------------------------------------------------------------------------------------------

// A weight [n, k]. K is cut into num_leaves leaves of ceil(k / num_leaves) columns; each leaf is one f32 accumulation
// in ascending k, leaves combine in a balanced binary tree ((0+1)+(2+3))+((4+5)+(6+7)).
// gated: rows [0, n/2) are the gate, rows [n/2, n) the up projection of a SwiGLU; for GatedLinear only.
struct LinearShape {
  int64_t n = 0;
  int64_t k = 0;
  int num_leaves = 1;  // 1, 2, 4 or 8
  DType dtype = DType::kBf16;
  bool gated = false;

  int64_t leaf_k() const { return (k + num_leaves - 1) / num_leaves; }
  bool operator==(const LinearShape&) const = default;
};

// Writes rows [first_row, first_row + source.dim(0)) of the packed weight from columns
// [first_column, first_column + shape.k) of source. Called once per piece while loading; the pieces of a merged weight
// (q|k|v, gate|up, ...) cover every row once. `out` must be zero-filled before the first piece.
struct PackLinearArgs {
  Tensor out;              // [PackedBytes(shape)] u8, aligned to 64 bytes
  LinearShape shape;
  ConstTensor source;      // [rows, columns] bf16 | f16 | f32 in HOST memory; converted to shape.dtype when they differ
  int64_t first_row = 0;
  int64_t first_column = 0;
  auto tensors() { return std::tie(out, source); }
};

// out = x W^T (+ bias, after the root of the tree).
struct LinearArgs {
  Tensor out;              // [M, n - R] f32: the columns from R on
  ConstTensor x;           // [M, k] act = shape.dtype, spread
  ConstTensor weight;      // [PackedBytes(shape)] u8
  LinearShape shape;
  ConstTensor bias;        // [n] f32, or empty
  Tensor rounded;          // [M, R] act, spread: the first R columns, rounded; or empty, R = 0
  int64_t num_generated = 0;
  int64_t num_rounded() const { return rounded.empty() ? 0 : rounded.dim(1); }
  auto tensors() { return std::tie(out, x, weight, bias, rounded); }
};

// out = silu(x Wg^T) * (x Wu^T): f32 up to the product, then rounded once to act.
struct GatedLinearArgs {
  Tensor out;              // [M, n / 2] act, spread
  ConstTensor x;           // [M, k] act, spread
  ConstTensor weight;      // [PackedBytes(shape)] u8, shape.gated
  LinearShape shape;
  int64_t num_generated = 0;
  auto tensors() { return std::tie(out, x, weight); }
};

// ---- residual stream --------------------------------------------------------------------------------------------

// out[t] = table[tokens[t] - vocab_begin] as f32, zeros when the token lies outside [vocab_begin, vocab_begin + rows).
struct EmbedArgs {
  Tensor out;              // [T, D] f32
  ConstTensor tokens;      // [T] i32
  ConstTensor table;       // [rows, D] bf16 | f16 | f32, this rank's vocabulary rows
  int64_t vocab_begin = 0;
  auto tensors() { return std::tie(out, tokens, table); }
};

// out = sum of the slices in tree order.
struct TreeSumArgs {
  Tensor out;              // [n] f32
  ConstTensor partials;    // [L, n] f32, L in {1, 2, 4, 8}
  auto tensors() { return std::tie(out, partials); }
};

// h += tree sum of partials.
struct ReduceAddArgs {
  Tensor h;                // [T, D] f32, in place
  ConstTensor partials;    // [L, T, D] f32
  auto tensors() { return std::tie(h, partials); }
};

// h += tree sum of partials (nothing when empty); out = h * rsqrt(mean(h^2) + eps) * (weight_offset + weight).
// RMSNorm: arXiv:1910.07467.
struct ReduceAddRmsNormArgs {
  Tensor out;              // [T, D] act, spread
  Tensor h;                // [T, D] f32, in place: the residual stream
  ConstTensor partials;    // [L, T, D] f32, one slice per subtree, or empty
  ConstTensor weight;      // [D] f32
  float weight_offset = 0; // 1 for zero-centred weights (Qwen3.5/3.6)
  float eps = 0;
  auto tensors() { return std::tie(out, h, partials, weight); }
};

// The same norm of chosen rows: out[r] = norm(h[rows[r]]).
struct RmsNormRowsArgs {
  Tensor out;              // [R, D] act
  ConstTensor h;           // [T, D] f32
  ConstTensor rows;        // [R] i32
  ConstTensor weight;      // [D] f32
  float weight_offset = 0;
  float eps = 0;
  auto tensors() { return std::tie(out, h, rows, weight); }
};

// ---- sequences --------------------------------------------------------------------------------------------------

// Which rows of the step belong to which sequence. Sequence s owns rows [row_begin[s], row_begin[s + 1]) at absolute
// positions start[s], start[s] + 1, ...; its first num_prompt_rows[s] rows have the role prompt, the rest generated.
// start[s] is a multiple of kChunkTokens, or num_prompt_rows[s] is 0. start[s] == 0 begins a fresh state.
struct SequenceRows {
  ConstTensor row_begin;        // [S + 1] i32
  ConstTensor start;            // [S] i32
  ConstTensor num_prompt_rows;  // [S] i32
  ConstTensor block_table;      // [S, max_blocks] i32: KV block of positions [j*B, (j+1)*B)
  ConstTensor state_slot;       // [S] i32: recurrent-state slot; -1 where the model has none
  int64_t num_sequences() const { return start.dim(0); }
};

// ---- attention --------------------------------------------------------------------------------------------------

// cos/sin[t, i] = attention_factor * cos/sin(float(positions[t]) * inv_freq[i]); the angle is rounded to f32, the
// function evaluated in f64. Once per step, shared by its layers.
struct RopeTableArgs {
  Tensor cos;              // [T, rotary_dim / 2] f32
  Tensor sin;              // [T, rotary_dim / 2] f32
  ConstTensor positions;   // [T] i32
  ConstTensor inv_freq;    // [rotary_dim / 2] f32
  float attention_factor = 1;
  auto tensors() { return std::tie(cos, sin, positions, inv_freq); }
};

// Per head: RMS norm of q and k (when weights are given), rotary embedding (rotate-half: pairs (i, i + rotary_dim/2)),
// all in f32, then rounded to act; k and v go to the cache at slots[t] = block * B + offset. Nq or Nkv may be 0: k and v
// alone, or q alone; then caches and slots may be null.
struct QkNormRopeArgs {
  Tensor q;                // [T, Nq, H] act
  Tensor k_cache;          // [num_blocks, Nkv, B, H] act
  Tensor v_cache;          // [num_blocks, Nkv, B, H] act
  ConstTensor qkv;         // [T, Nq*H*(gated ? 2 : 1) + 2*Nkv*H] f32: per query head q (| gate), then k heads, v heads
  ConstTensor q_norm;      // [H] f32, or empty
  ConstTensor k_norm;      // [H] f32, or empty
  ConstTensor cos;         // [T, rotary_dim / 2] f32
  ConstTensor sin;         // [T, rotary_dim / 2] f32
  ConstTensor slots;       // [T] i32
  float norm_offset = 0;
  float eps = 0;
  bool gated = false;
  auto tensors() { return std::tie(q, k_cache, v_cache, qkv, q_norm, k_norm, cos, sin, slots); }
};

// Linear, then QkNormRope of what it gave: rope.qkv is linear.out. Of linear.out only the gates are defined afterwards, and
// nothing without gates.
struct QkvLinearArgs {
  LinearArgs linear;
  QkNormRopeArgs rope;
};

// Causal grouped-query attention over the paged cache; query head h reads KV head h / (Nq / Nkv). KV positions are walked
// in segments [j * kSegmentTokens, (j+1) * kSegmentTokens): a segment gives (max, sum of exp, sum of exp * v) in f32,
// segments merge in ascending order. With gated: the result is multiplied by sigmoid(gate) of the same row and head.
// Cache rows past a sequence's end may hold anything, NaN included, and must not matter.
struct AttentionArgs {
  Tensor out;              // [T, Nq * H] act, spread
  ConstTensor q;           // [T, Nq, H] act
  ConstTensor k_cache;     // [num_blocks, Nkv, B, H] act
  ConstTensor v_cache;     // [num_blocks, Nkv, B, H] act
  ConstTensor qkv;         // [T, ...] f32 as in QkNormRopeArgs, with or without k and v: source of the gate; empty without
  SequenceRows sequences;
  float scale = 1;
  bool gated = false;
  auto tensors() { return std::tie(out, q, k_cache, v_cache, qkv); }
};

// ---- gated delta net (arXiv:2412.06464) ---------------------------------------------------------------------------

// Depthwise causal convolution with SiLU: out[t, c] = silu(sum_j weight[c, j] * u[t - W + 1 + j, c]), summed in ascending
// j, where u is x preceded by state (zeros when the sequence starts at 0). state keeps the last W - 1 inputs of each
// sequence, oldest first.
struct CausalConvArgs {
  Tensor out;              // [T, C] f32
  Tensor state;            // [num_slots, C, W - 1] act, in place
  ConstTensor x;           // [T, C] act, spread
  ConstTensor weight;      // [C, W] f32
  SequenceRows sequences;
  auto tensors() { return std::tie(out, state, x, weight); }
};

enum class GateActivation : uint8_t { kSilu, kSigmoid };

// The gated delta rule and its gated norm. Per value head h with key head h / (Hv / Hk), everything in f32:
//   q, k <- x * rsqrt(sum(x^2) + 1e-6) over P;  q *= P^-0.5;  beta = sigmoid(b);  g = -exp(a_log) * softplus(a + dt_bias)
//   S <- exp(g) S;  d = beta (v - S^T k);  S <- S + k d^T;  o = S^T q
//   out = norm * o * rsqrt(mean(o^2) + eps) * activation(z)
// Rows with role prompt are evaluated in the chunked form on the absolute kChunkTokens grid, generated rows by the
// recurrence above; the two differ only in rounding. Fresh state (zeros) when the sequence starts at 0.
struct GatedDeltaNetArgs {
  Tensor out;              // [T, Hv * Q] act, spread
  Tensor state;            // [num_slots, Hv, P, Q] f32, in place
  ConstTensor conv;        // [T, C] f32: q heads | k heads | v heads, from CausalConv
  ConstTensor gates;       // [T, Hv*Q + 2*Hv] f32: z | b | a
  ConstTensor a_log;       // [Hv] f32
  ConstTensor dt_bias;     // [Hv] f32
  ConstTensor norm;        // [Q] f32
  SequenceRows sequences;
  int64_t num_key_heads = 0;
  float eps = 0;
  GateActivation activation = GateActivation::kSilu;
  auto tensors() { return std::tie(out, state, conv, gates, a_log, dt_bias, norm); }
};

// CausalConv, then GatedDeltaNet of what it gave: delta.conv is conv.out, undefined afterwards.
struct ConvGatedDeltaNetArgs {
  CausalConvArgs conv;
  GatedDeltaNetArgs delta;
};

// ---- mixture of experts -------------------------------------------------------------------------------------------

// p = softmax(logits) in f32; the K largest (ties: lowest id), written in ascending expert id; weights divided by
// their sum when renormalize.
struct MoeRouteArgs {
  Tensor experts;          // [T, K] i32
  Tensor weights;          // [T, K] f32
  ConstTensor logits;      // [T, E] f32
  bool renormalize = false;
  auto tensors() { return std::tie(experts, weights, logits); }
};

// out = tree over this rank's leaves of (sum over the token's experts in ascending id of w_e * down_e[leaf]), where
// down_e = Linear(GatedLinear(x)) of expert e with its leaves not yet combined. Product, then add, each rounded to f32.
struct MoeMlpArgs {
  Tensor out;              // [T, D] f32
  ConstTensor x;           // [T, D] act, spread
  ConstTensor experts;     // [T, K] i32
  ConstTensor weights;     // [T, K] f32
  ConstTensor gate_up;     // [E, PackedBytes(gate_up_shape)] u8
  ConstTensor down;        // [E, PackedBytes(down_shape)] u8
  LinearShape gate_up_shape;  // gated, n = 2F, k = D
  LinearShape down_shape;     // n = D, k = F
  int64_t num_generated = 0;
  auto tensors() { return std::tie(out, x, experts, weights, gate_up, down); }
};

// ---- logits to tokens ---------------------------------------------------------------------------------------------

// out[r] = the parts' rows r side by side, cut at V.
struct ConcatColumnsArgs {
  Tensor out;              // [R, V] f32
  ConstTensor parts;       // [num_parts, R, columns] f32, num_parts * columns >= V
  auto tensors() { return std::tie(out, parts); }
};

// Per row r, for each entry e of [entry_begin[r], entry_begin[r+1]), with x = logits[r, token[e]], in this order:
//   repetition penalty (all entries): x > 0 ? x / rep : x * rep;  x -= frequency * count[e] + (count[e] > 0 ? presence : 0)
//   x += bias[e].
// An entry is a token of the row's prompt or output, or one with a bias; count = times generated. Entries of a row name
// distinct tokens; seen[e] is 1 for tokens of prompt or output (the repetition penalty touches only these).
struct PenaltiesArgs {
  Tensor logits;           // [R, V] f32, in place
  ConstTensor entry_begin; // [R + 1] i32
  ConstTensor token;       // [N] i32
  ConstTensor count;       // [N] i32
  ConstTensor seen;        // [N] i32
  ConstTensor bias;        // [N] f32
  ConstTensor repetition;  // [R] f32, 1 = off
  ConstTensor presence;    // [R] f32
  ConstTensor frequency;   // [R] f32
  auto tensors() {
    return std::tie(logits, entry_begin, token, count, seen, bias, repetition, presence, frequency);
  }
};

// Draws one token per row. temperature 0: the largest logit, ties to the lowest id. Otherwise x = logit / temperature,
// p = exp(x - max) in f64, tokens with p < min_p dropped; with top_k > 0 or top_p < 1 the rest are ordered by (logit
// descending, id ascending), cut to top_k, then to the shortest prefix whose p reaches top_p of their sum (at least one);
// else they stay in id order. u = Philox4x32-10 (SC'11, Salmon et al.) with key = seed, counter = (position, 0, 0, 0),
// first two words -> 53 bits in [0, 1); the drawn token is the first whose prefix sum of p exceeds u * (sum of p).
// Prefix sums are sequential f64 in list order.
struct SampleArgs {
  Tensor tokens;           // [R] i32
  ConstTensor logits;      // [R, V] f32
  ConstTensor temperature; // [R] f32
  ConstTensor top_k;       // [R] i32, 0 = off
  ConstTensor top_p;       // [R] f32, 1 = off
  ConstTensor min_p;       // [R] f32, 0 = off
  ConstTensor seed;        // [R] i64
  ConstTensor position;    // [R] i32: absolute position of the token being drawn
  auto tensors() {
    return std::tie(tokens, logits, temperature, top_k, top_p, min_p, seed, position);
  }
};

// Log-probabilities: logit - lse, where lse sums exp(x - max) in f64 over the kNumLeaves vocabulary leaves of
// ceil(V / kNumLeaves) tokens, ascending, combined in the tree; the difference is rounded once to f32.
// The same token gets the same float as target and in the top list.
struct LogprobsArgs {
  Tensor target_logprobs;  // [R] f32
  Tensor target_ranks;     // [R] i32: 1 + number of tokens ordered before the target (logit descending, id ascending)
  Tensor top_ids;          // [R, K] i32, ordered (logit descending, id ascending); K may be 0 (then empty)
  Tensor top_logprobs;     // [R, K] f32
  ConstTensor logits;      // [R, V] f32
  ConstTensor targets;     // [R] i32
  auto tensors() {
    return std::tie(target_logprobs, target_ranks, top_ids, top_logprobs, logits, targets);
  }
};

// ---- the interface ------------------------------------------------------------------------------------------------

class Ops {
 public:
  virtual ~Ops() = default;

  // Names the version of the arithmetic: equal names on equal inputs give equal bits ("reference-1", "cpu-amx-1", ...).
  virtual std::string_view arithmetic() const = 0;
  // Bytes of a packed weight, a multiple of 64.
  virtual int64_t PackedBytes(const LinearShape& shape) const = 0;
  // Names how packed weights lie in host memory: equal names, shapes and sources, equal bytes. Empty: not in host memory.
  virtual std::string_view packed_layout() const { return {}; }

  void PackLinear(const PackLinearArgs& args);
  void Linear(const LinearArgs& args);
  void GatedLinear(const GatedLinearArgs& args);
  void Embed(const EmbedArgs& args);
  void TreeSum(const TreeSumArgs& args);
  void ReduceAdd(const ReduceAddArgs& args);
  void ReduceAddRmsNorm(const ReduceAddRmsNormArgs& args);
  void RmsNormRows(const RmsNormRowsArgs& args);
  void RopeTable(const RopeTableArgs& args);
  void QkNormRope(const QkNormRopeArgs& args);
  void QkvLinear(const QkvLinearArgs& args);
  void Attention(const AttentionArgs& args);
  void CausalConv(const CausalConvArgs& args);
  void GatedDeltaNet(const GatedDeltaNetArgs& args);
  void ConvGatedDeltaNet(const ConvGatedDeltaNetArgs& args);
  void MoeRoute(const MoeRouteArgs& args);
  void MoeMlp(const MoeMlpArgs& args);
  void ConcatColumns(const ConcatColumnsArgs& args);
  void Penalties(const PenaltiesArgs& args);
  void Sample(const SampleArgs& args);
  void Logprobs(const LogprobsArgs& args);

 private:
  // A backend's implementation of the op of the same name; arguments are already checked, T, R and S are >= 1.
  virtual void DoPackLinear(const PackLinearArgs& args) = 0;
  virtual void DoLinear(const LinearArgs& args) = 0;
  virtual void DoGatedLinear(const GatedLinearArgs& args) = 0;
  virtual void DoEmbed(const EmbedArgs& args) = 0;
  virtual void DoTreeSum(const TreeSumArgs& args) = 0;
  virtual void DoReduceAdd(const ReduceAddArgs& args) = 0;
  virtual void DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) = 0;
  virtual void DoRmsNormRows(const RmsNormRowsArgs& args) = 0;
  virtual void DoRopeTable(const RopeTableArgs& args) = 0;
  virtual void DoQkNormRope(const QkNormRopeArgs& args) = 0;
  virtual void DoQkvLinear(const QkvLinearArgs& args);  // the two ops one after the other
  virtual void DoAttention(const AttentionArgs& args) = 0;
  virtual void DoCausalConv(const CausalConvArgs& args) = 0;
  virtual void DoGatedDeltaNet(const GatedDeltaNetArgs& args) = 0;
  virtual void DoConvGatedDeltaNet(const ConvGatedDeltaNetArgs& args);  // the two ops one after the other
  virtual void DoMoeRoute(const MoeRouteArgs& args) = 0;
  virtual void DoMoeMlp(const MoeMlpArgs& args) = 0;
  virtual void DoConcatColumns(const ConcatColumnsArgs& args) = 0;
  virtual void DoPenalties(const PenaltiesArgs& args) = 0;
  virtual void DoSample(const SampleArgs& args) = 0;
  virtual void DoLogprobs(const LogprobsArgs& args) = 0;
};

}  // namespace plumbline
