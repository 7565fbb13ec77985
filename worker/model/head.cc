#include "worker/model/head.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
namespace {

// Small host arrays on their way to an op; uploaded into buffers that live as long as this.
class Uploads {
 public:
  explicit Uploads(Device& device) : device_(device) {}

  template <typename T>
  Tensor Of(DType dtype, const std::vector<T>& values) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    Buffer buffer = device_.Allocate(std::max<size_t>(values.size() * sizeof(T), 8));
    Tensor view = buffer.View(dtype, {static_cast<int64_t>(values.size())});
    device_.Upload(view, values.data());
    buffers_.push_back(std::move(buffer));
    return view;
  }
  Tensor Empty(DType dtype, Shape shape) {
    buffers_.push_back(device_.Allocate(std::max<size_t>(shape.num_elements() * SizeOf(dtype), 8)));
    return buffers_.back().View(dtype, shape);
  }

 private:
  Device& device_;
  std::vector<Buffer> buffers_;
};

template <typename T>
std::vector<T> Downloaded(Device& device, const ConstTensor& tensor) {
  std::vector<T> values(tensor.num_elements());
  if (!values.empty()) device.Download(values.data(), tensor);
  return values;
}

int64_t LocalVocabRows(const ShardPlan& plan) {
  return plan.VocabLeafRows() * (kNumLeaves / plan.mesh().tp);
}

}  // namespace

absl::StatusOr<Head> Head::Load(const ModelConfig& config, const ShardPlan& plan, Device& device, DType act,
                                WeightLoader& loader) {
  Head head;
  head.vocab_ = config.vocab;
  head.hidden_ = config.hidden;
  head.norm_offset_ = config.norm_offset;
  head.eps_ = config.norm_eps;
  PL_ASSIGN_OR_RETURN(head.norm_, loader.Vector({"model.norm.weight"}));
  PL_ASSIGN_OR_RETURN(head.head_, loader.Head(config.tied_head ? "model.embed_tokens.weight"
                                                               : "lm_head.weight"));
  const int64_t local = LocalVocabRows(plan), tp = plan.mesh().tp;
  head.rows_ = device.Allocate(kHeadRows * 4);
  head.normed_ = device.Allocate(kHeadRows * config.hidden * SizeOf(act));
  head.local_logits_ = device.Allocate(kHeadRows * local * 4);
  if (tp > 1) head.gathered_logits_ = device.Allocate(tp * kHeadRows * local * 4);
  head.logits_ = device.Allocate(kHeadRows * config.vocab * 4);
  head.drawn_logits_ = device.Allocate(kHeadRows * config.vocab * 4);
  if (head.logits_.data() == nullptr || head.drawn_logits_.data() == nullptr) {
    return absl::ResourceExhaustedError("no memory for the logits");
  }
  return head;
}

int64_t Head::BufferBytes(const ModelConfig& config, const ShardPlan& plan, DType act) {
  const int64_t local = LocalVocabRows(plan), tp = plan.mesh().tp;
  return kHeadRows * (config.hidden * static_cast<int64_t>(SizeOf(act)) +
                      4 * (local + (tp > 1 ? tp * local : 0) + 2 * config.vocab));
}

std::vector<Head::WantedRow> Head::WantedRows(const StepPlan& plan) {
  std::vector<WantedRow> wanted;
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const SequencePlan& sequence = plan.sequences[s];
    for (size_t i = 0; i < sequence.tokens.size(); ++i) {
      if (!sequence.WantsLogits(i)) continue;
      wanted.push_back({.sequence = s,
                        .draw = sequence.draw_token && i + 1 == sequence.tokens.size(),
                        .target = sequence.targets.empty() ? -1 : sequence.targets[i],
                        .keep_logits = sequence.return_logits});
    }
  }
  return wanted;
}

absl::StatusOr<std::vector<SequenceResult>> Head::Forward(const Context& context, Communicator& tp_group,
                                                          const StepPlan& plan, Tensor h) {
  const bool reports = tp_group.rank() == 0;
  std::vector<SequenceResult> results(reports ? plan.sequences.size() : 0);
  for (size_t s = 0; s < results.size(); ++s) results[s].sequence_id = plan.sequences[s].sequence_id;
  const std::vector<WantedRow> wanted = WantedRows(plan);
  for (size_t begin = 0; begin < wanted.size(); begin += kHeadRows) {
    const size_t end = std::min(wanted.size(), begin + static_cast<size_t>(kHeadRows));
    const std::vector<WantedRow> rows(wanted.begin() + begin, wanted.begin() + end);
    PL_ASSIGN_OR_RETURN(Tensor logits, LogitsOf(context, tp_group, h, static_cast<int64_t>(begin),
                                                static_cast<int64_t>(rows.size())));
    if (!reports) continue;
    KeepLogits(context, rows, logits, results);
    DrawTokens(context, plan, rows, logits, results);
    ScoreTokens(context, plan, rows, logits, results);
  }
  return results;
}

absl::StatusOr<Tensor> Head::LogitsOf(const Context& context, Communicator& tp_group, Tensor h, int64_t first,
                                      int64_t count) {
  const int64_t local = head_.shape.n;
  std::vector<int32_t> indexes(count);
  std::iota(indexes.begin(), indexes.end(), static_cast<int32_t>(first));
  Tensor row_indexes = rows_.View(DType::kI32, {count});
  context.device->Upload(row_indexes, indexes.data());
  Tensor normed = normed_.View(context.act, {count, hidden_});
  Tensor local_logits = local_logits_.View(DType::kF32, {count, local});
  context.ops->RmsNormRows({.out = normed,
                            .h = h,
                            .rows = row_indexes,
                            .weight = norm_.View(DType::kF32, {hidden_}),
                            .weight_offset = norm_offset_,
                            .eps = eps_});
  context.ops->Linear(
      {.out = local_logits, .x = normed, .weight = head_.packed(), .shape = head_.shape});
  const int64_t tp = tp_group.size();
  Tensor parts = tp > 1 ? gathered_logits_.View(DType::kF32, {tp, count, local})
                        : local_logits.Reshape({1, count, local});
  if (tp > 1) PL_RETURN_IF_ERROR(tp_group.AllGather(parts, local_logits));
  if (tp == 1 && local == vocab_) return local_logits;
  Tensor logits = logits_.View(DType::kF32, {count, vocab_});
  if (tp_group.rank() == 0) context.ops->ConcatColumns({.out = logits, .parts = parts});
  return logits;
}

void Head::KeepLogits(const Context& context, const std::vector<WantedRow>& rows, Tensor logits,
                      std::vector<SequenceResult>& results) const {
  std::vector<float> row(vocab_);
  for (size_t r = 0; r < rows.size(); ++r) {
    if (!rows[r].keep_logits) continue;
    context.device->Download(row.data(), logits.Rows(static_cast<int64_t>(r), 1));
    results[rows[r].sequence].logits.append(reinterpret_cast<const char*>(row.data()), row.size() * 4);
  }
}

void Head::DrawTokens(const Context& context, const StepPlan& plan, const std::vector<WantedRow>& rows,
                      Tensor logits, std::vector<SequenceResult>& results) {
  std::vector<size_t> drawn;  // indexes into rows
  std::vector<float> temperature, top_p, min_p, repetition, presence, frequency, bias;
  std::vector<int32_t> top_k, position, entry_begin = {0}, entry_token, entry_count, entry_seen;
  std::vector<int64_t> seed;
  for (size_t r = 0; r < rows.size(); ++r) {
    if (!rows[r].draw) continue;
    drawn.push_back(r);
    const SequencePlan& sequence = plan.sequences[rows[r].sequence];
    const DrawPlan& draw = sequence.draw;
    temperature.push_back(draw.temperature);
    top_k.push_back(draw.top_k);
    top_p.push_back(draw.top_p);
    min_p.push_back(draw.min_p);
    seed.push_back(static_cast<int64_t>(draw.seed));
    position.push_back(sequence.start + static_cast<int32_t>(sequence.tokens.size()));
    repetition.push_back(draw.repetition_penalty);
    presence.push_back(draw.presence_penalty);
    frequency.push_back(draw.frequency_penalty);
    for (const DrawPlan::Entry& entry : draw.entries) {
      entry_token.push_back(entry.token);
      entry_count.push_back(entry.count);
      entry_seen.push_back(entry.seen ? 1 : 0);
      bias.push_back(entry.bias);
    }
    entry_begin.push_back(static_cast<int32_t>(entry_token.size()));
  }
  if (drawn.empty()) return;
  Device& device = *context.device;
  const int64_t count = static_cast<int64_t>(drawn.size());
  // Penalties change logits in place; scores are of the model's own, so the draw works on a copy when there are any.
  Tensor source = logits;
  if (!entry_token.empty() || count != logits.dim(0)) {
    source = drawn_logits_.View(DType::kF32, {count, vocab_});
    for (int64_t i = 0; i < count; ++i) {
      device.Copy(source.Rows(i, 1), logits.Rows(static_cast<int64_t>(drawn[i]), 1));
    }
  }
  Uploads uploads(device);
  if (!entry_token.empty()) {
    context.ops->Penalties({.logits = source,
                            .entry_begin = uploads.Of(DType::kI32, entry_begin),
                            .token = uploads.Of(DType::kI32, entry_token),
                            .count = uploads.Of(DType::kI32, entry_count),
                            .seen = uploads.Of(DType::kI32, entry_seen),
                            .bias = uploads.Of(DType::kF32, bias),
                            .repetition = uploads.Of(DType::kF32, repetition),
                            .presence = uploads.Of(DType::kF32, presence),
                            .frequency = uploads.Of(DType::kF32, frequency)});
  }
  Tensor tokens = uploads.Empty(DType::kI32, {count});
  context.ops->Sample({.tokens = tokens,
                       .logits = source,
                       .temperature = uploads.Of(DType::kF32, temperature),
                       .top_k = uploads.Of(DType::kI32, top_k),
                       .top_p = uploads.Of(DType::kF32, top_p),
                       .min_p = uploads.Of(DType::kF32, min_p),
                       .seed = uploads.Of(DType::kI64, seed),
                       .position = uploads.Of(DType::kI32, position)});
  const std::vector<int32_t> ids = Downloaded<int32_t>(device, tokens);
  for (int64_t i = 0; i < count; ++i) results[rows[drawn[i]].sequence].token = ids[i];
}

void Head::ScoreTokens(const Context& context, const StepPlan& plan, const std::vector<WantedRow>& rows,
                       Tensor logits, std::vector<SequenceResult>& results) {
  const int64_t count = static_cast<int64_t>(rows.size());
  // A row scores its target, or the token just drawn there when that was asked for, or both.
  struct Scored {
    int32_t row;
    int32_t token;
    bool drawn;
  };
  std::vector<Scored> scored;
  int32_t num_top = 0;
  for (int32_t r = 0; r < count; ++r) {
    const SequencePlan& sequence = plan.sequences[rows[r].sequence];
    if (rows[r].target >= 0) scored.push_back({r, rows[r].target, false});
    if (rows[r].draw && sequence.num_top_logprobs >= 0) {
      scored.push_back({r, results[rows[r].sequence].token, true});
    }
    num_top = std::max(num_top, sequence.num_top_logprobs);
  }
  Device& device = *context.device;
  Uploads uploads(device);
  // Both kinds on one row are rare: a second pass takes the drawn ones.
  for (const bool drawn : {false, true}) {
    std::vector<int32_t> targets(count, 0);
    bool any = false;
    for (const Scored& item : scored) {
      if (item.drawn != drawn) continue;
      targets[item.row] = item.token;
      any = true;
    }
    if (!any) continue;
    Tensor logprobs = uploads.Empty(DType::kF32, {count});
    Tensor ranks = uploads.Empty(DType::kI32, {count});
    Tensor top_ids = num_top > 0 ? uploads.Empty(DType::kI32, {count, num_top}) : Tensor();
    Tensor top_logprobs = num_top > 0 ? uploads.Empty(DType::kF32, {count, num_top}) : Tensor();
    context.ops->Logprobs({.target_logprobs = logprobs,
                           .target_ranks = ranks,
                           .top_ids = top_ids,
                           .top_logprobs = top_logprobs,
                           .logits = logits,
                           .targets = uploads.Of(DType::kI32, targets)});
    const std::vector<float> values = Downloaded<float>(device, logprobs);
    const std::vector<int32_t> rank_values = Downloaded<int32_t>(device, ranks);
    std::vector<int32_t> ids;
    std::vector<float> id_values;
    if (num_top > 0) {
      ids = Downloaded<int32_t>(device, top_ids);
      id_values = Downloaded<float>(device, top_logprobs);
    }
    for (const Scored& item : scored) {
      if (item.drawn != drawn) continue;
      const int32_t wanted =
          std::max(0, plan.sequences[rows[item.row].sequence].num_top_logprobs);
      const int64_t first = int64_t{item.row} * num_top;
      SequenceResult& result = results[rows[item.row].sequence];
      (drawn ? result.drawn : result.scored)
          .push_back({.token = item.token,
                      .logprob = values[item.row],
                      .rank = rank_values[item.row],
                      .top_tokens = {ids.begin() + first, ids.begin() + first + wanted},
                      .top_logprobs = {id_values.begin() + first, id_values.begin() + first + wanted}});
    }
  }
}

}  // namespace plumbline
