#include "worker/model/batch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

absl::Status CheckStateCopies(const SequencePlan& sequence, const BatchLimits& limits) {
  for (const int32_t slot : {sequence.load_slot, sequence.save_slot}) {
    if (slot < -1 || slot >= limits.num_state_slots) {
      return absl::InvalidArgumentError(
          absl::StrCat("state to copy: slot ", slot, " of ", limits.num_state_slots));
    }
    if (slot >= 0 && slot == sequence.state_slot) {
      return absl::InvalidArgumentError(absl::StrCat("state slot ", slot, " is copied to itself"));
    }
  }
  if (sequence.load_slot >= 0 && (sequence.start == 0 || sequence.start % kChunkTokens != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a state is loaded at position ", sequence.start, "; it belongs on the grid, behind 0"));
  }
  const int64_t count = static_cast<int64_t>(sequence.tokens.size());
  if (sequence.save_slot >= 0 &&
      (sequence.num_prompt_tokens != count || (sequence.start + count) % kChunkTokens != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("a state is saved at position ", sequence.start + count,
                                                   "; it belongs on the grid, behind prompt tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckSequence(const SequencePlan& sequence, const BatchLimits& limits) {
  const int64_t count = static_cast<int64_t>(sequence.tokens.size());
  const int64_t end = sequence.start + count;
  if (count == 0) return absl::InvalidArgumentError("no tokens");
  if (sequence.start < 0 || end > limits.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("positions [", sequence.start, ", ", end,
                                                   ") outside the context of ", limits.max_positions));
  }
  if (sequence.num_prompt_tokens < 0 || sequence.num_prompt_tokens > count) {
    return absl::InvalidArgumentError(absl::StrCat("num_prompt_tokens ", sequence.num_prompt_tokens));
  }
  if (sequence.num_prompt_tokens > 0 && sequence.start % kChunkTokens != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt chunk starts at ", sequence.start, ", off the grid of ", kChunkTokens));
  }
  for (int32_t token : sequence.tokens) {
    if (token < 0 || token >= limits.vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", token, " outside the vocabulary of ", limits.vocab));
    }
  }
  if (static_cast<int64_t>(sequence.block_table.size()) * kBlockTokens < end) {
    return absl::InvalidArgumentError(absl::StrCat("block table of ", sequence.block_table.size(),
                                                   " blocks for ", end, " positions"));
  }
  for (int32_t block : sequence.block_table) {
    if (block < 0 || block >= limits.num_blocks) {
      return absl::InvalidArgumentError(absl::StrCat("block ", block, " of ", limits.num_blocks));
    }
  }
  if (limits.num_state_slots > 0 &&
      (sequence.state_slot < 0 || sequence.state_slot >= limits.num_state_slots)) {
    return absl::InvalidArgumentError(
        absl::StrCat("state slot ", sequence.state_slot, " of ", limits.num_state_slots));
  }
  if (absl::Status status = CheckStateCopies(sequence, limits); !status.ok()) return status;
  if (!sequence.targets.empty() && static_cast<int64_t>(sequence.targets.size()) != count) {
    return absl::InvalidArgumentError(
        absl::StrCat(sequence.targets.size(), " targets for ", count, " tokens"));
  }
  for (int32_t target : sequence.targets) {
    if (target < -1 || target >= limits.vocab) {
      return absl::InvalidArgumentError(absl::StrCat("target ", target));
    }
  }
  for (const DrawPlan::Entry& entry : sequence.draw.entries) {
    if (entry.token < 0 || entry.token >= limits.vocab) {
      return absl::InvalidArgumentError(absl::StrCat("penalty on token ", entry.token));
    }
  }
  if (sequence.num_top_logprobs > limits.vocab) {
    return absl::InvalidArgumentError(absl::StrCat("num_top_logprobs ", sequence.num_top_logprobs));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckPlan(const StepPlan& plan, const BatchLimits& limits) {
  const int64_t num_sequences = static_cast<int64_t>(plan.sequences.size());
  if (num_sequences == 0 || num_sequences > limits.max_sequences ||
      plan.num_tokens() > limits.max_step_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step ", plan.step, " has ", num_sequences, " sequences and ", plan.num_tokens(),
        " tokens; limits are ", limits.max_sequences, " and ", limits.max_step_tokens));
  }
  for (const SequencePlan& sequence : plan.sequences) {
    if (absl::Status status = CheckSequence(sequence, limits); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("step ", plan.step, ", sequence ",
                                                     sequence.sequence_id, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

BatchBuilder::BatchBuilder(Device& device, const BatchLimits& limits, int64_t rotary_dim)
    : device_(device), rotary_dim_(rotary_dim) {
  const int64_t rows = limits.max_step_tokens, sequences = limits.max_sequences;
  for (Buffer* buffer : {&tokens_, &kv_slots_, &wanted_rows_}) *buffer = device.Allocate(rows * 4);
  all_ = Allocate(limits, sequences);
  wanted_ = Allocate(limits, (rows + sequences) / 2);  // every other row
}

BatchBuilder::RowBuffers BatchBuilder::Allocate(const BatchLimits& limits, int64_t max_runs) {
  const int64_t rows = limits.max_step_tokens;
  RowBuffers buffers;
  buffers.positions = device_.Allocate(rows * 4);
  for (Buffer* buffer : {&buffers.cos, &buffers.sin}) {
    *buffer = device_.Allocate(std::max<int64_t>(rows * rotary_dim_ / 2 * 4, 4));
  }
  for (Buffer* buffer : {&buffers.row_begin, &buffers.start, &buffers.num_prompt_rows, &buffers.state_slot}) {
    *buffer = device_.Allocate((max_runs + 1) * 4);
  }
  // A rectangular table: every run could be of the longest context.
  buffers.block_table = device_.Allocate(max_runs * ((limits.max_positions + kBlockTokens - 1) / kBlockTokens) * 4);
  return buffers;
}

Tensor BatchBuilder::UploadInts(Buffer& buffer, const std::vector<int32_t>& values, Shape shape) {
  Tensor view = buffer.View(DType::kI32, shape);
  device_.Upload(view, values.data());
  return view;
}

BatchRows BatchBuilder::Upload(RowBuffers& buffers, std::span<const Run> runs) {
  const int64_t num_runs = static_cast<int64_t>(runs.size());
  size_t max_blocks = 1;
  for (const Run& run : runs) max_blocks = std::max(max_blocks, run.sequence->block_table.size());
  std::vector<int32_t> positions, row_begin = {0}, start, num_prompt_rows, state_slot, block_table;
  for (const Run& run : runs) {
    const SequencePlan& sequence = *run.sequence;
    start.push_back(sequence.start + run.first);
    for (int32_t i = 0; i < run.count; ++i) positions.push_back(start.back() + i);
    row_begin.push_back(static_cast<int32_t>(positions.size()));
    // The role is the delta rule's, which never takes a part of a sequence's rows.
    num_prompt_rows.push_back(&buffers == &all_ ? sequence.num_prompt_tokens : 0);
    state_slot.push_back(sequence.state_slot);
    block_table.insert(block_table.end(), sequence.block_table.begin(), sequence.block_table.end());
    block_table.resize(start.size() * max_blocks, 0);
  }
  const int64_t rows = static_cast<int64_t>(positions.size());
  return {.count = rows,
          .positions = UploadInts(buffers.positions, positions, {rows}),
          .cos = buffers.cos.View(DType::kF32, {rows, rotary_dim_ / 2}),
          .sin = buffers.sin.View(DType::kF32, {rows, rotary_dim_ / 2}),
          .sequences = {.row_begin = UploadInts(buffers.row_begin, row_begin, {num_runs + 1}),
                        .start = UploadInts(buffers.start, start, {num_runs}),
                        .num_prompt_rows = UploadInts(buffers.num_prompt_rows, num_prompt_rows, {num_runs}),
                        .block_table = UploadInts(buffers.block_table, block_table,
                                                  {num_runs, static_cast<int64_t>(max_blocks)}),
                        .state_slot = UploadInts(buffers.state_slot, state_slot, {num_runs})}};
}

Batch BatchBuilder::Build(const StepPlan& plan) {
  std::vector<int32_t> tokens, kv_slots, wanted_rows;
  std::vector<Run> all, wanted;
  for (const SequencePlan& sequence : plan.sequences) {
    const int32_t count = static_cast<int32_t>(sequence.tokens.size());
    all.push_back({.sequence = &sequence, .first = 0, .count = count});
    bool adjoins = false;  // the row before is the end of the last run
    for (int32_t i = 0; i < count; ++i) {
      const bool is_wanted = sequence.WantsLogits(i);
      if (is_wanted) {
        wanted_rows.push_back(static_cast<int32_t>(tokens.size()));
        if (!adjoins) wanted.push_back({.sequence = &sequence, .first = i, .count = 0});
        ++wanted.back().count;
      }
      adjoins = is_wanted;
      const int32_t position = sequence.start + i;
      tokens.push_back(sequence.tokens[i]);
      kv_slots.push_back(sequence.block_table[position / kBlockTokens] * kBlockTokens + position % kBlockTokens);
    }
  }
  const int64_t rows = static_cast<int64_t>(tokens.size()), num_wanted = static_cast<int64_t>(wanted_rows.size());
  const BatchRows all_rows = Upload(all_, all);
  return {.tokens = UploadInts(tokens_, tokens, {rows}),
          .kv_slots = UploadInts(kv_slots_, kv_slots, {rows}),
          .all = all_rows,
          .wanted_rows = UploadInts(wanted_rows_, wanted_rows, {num_wanted}),
          .wanted = num_wanted == rows ? all_rows : Upload(wanted_, wanted)};
}

}  // namespace plumbline
