// What a step computes for the rows whose logits are wanted does not depend on which other rows are wanted: all bits
// are those of the same steps with every row wanted.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>
#include <utility>

#include "tests/golden_case.h"

namespace plumbline {
namespace {

struct Model {
  std::string golden;
  int64_t num_layers;  // of it
  MixerKind last;
};

// Rows [start, end) of a sequence in a step; the first prompt_end positions of the sequence are its prompt.
struct Part {
  int sequence, start, end, prompt_end;
};
const std::vector<std::vector<Part>> kSteps = {{{0, 0, 128, 150}, {1, 0, 70, 70}},
                                               {{0, 128, 150, 150}, {1, 70, 71, 70}, {2, 0, 33, 33}},
                                               {{2, 33, 34, 33}, {0, 150, 151, 150}, {3, 0, 300, 300}}};

struct Wanted {
  std::string name;
  std::function<bool(int sequence, int position)> scored;
  std::set<int> logits_of = {};  // sequences whose logits are returned, of all rows
};

struct Outcome {
  std::map<std::pair<int, int>, std::vector<float>> logprobs;  // (sequence, position): of every token, by rank
  std::map<std::pair<int, int>, std::string> logits;           // (sequence, start of a part): f32
};

Outcome RunSteps(LocalRanks& ranks, int32_t vocab, const Wanted& wanted) {
  Outcome outcome;
  for (size_t step = 0; step < kSteps.size(); ++step) {
    StepPlan plan = {.epoch = 1, .step = step, .sequences = {}};
    for (const Part& part : kSteps[step]) {
      SequencePlan sequence = {.sequence_id = static_cast<uint64_t>(part.sequence), .start = part.start};
      sequence.num_prompt_tokens = std::max(0, std::min(part.end, part.prompt_end) - part.start);
      for (int block = 0; block * kBlockTokens < part.end; ++block) {
        sequence.block_table.push_back(part.sequence * 5 + 4 - block);
      }
      sequence.state_slot = part.sequence;
      sequence.num_top_logprobs = vocab;
      sequence.return_logits = wanted.logits_of.contains(part.sequence);
      for (int position = part.start; position < part.end; ++position) {
        sequence.tokens.push_back((position * 31 + part.sequence * 17 + 5) % vocab);
        sequence.targets.push_back(wanted.scored(part.sequence, position) ? 3 : -1);
      }
      plan.sequences.push_back(std::move(sequence));
    }
    const auto result = ranks.Run(std::move(plan));
    PL_CHECK_MSG(result.ok(), result.status().ToString().c_str());
    for (size_t i = 0; i < kSteps[step].size(); ++i) {
      const Part& part = kSteps[step][i];
      const SequenceResult& got = result->sequences[i];
      auto next = got.scored.begin();
      for (int position = part.start; position < part.end; ++position) {
        if (!wanted.scored(part.sequence, position)) continue;
        PL_CHECK(next != got.scored.end());
        std::vector<float>& row = outcome.logprobs[{part.sequence, position}];
        row.assign(next->top_tokens.begin(), next->top_tokens.end());
        row.insert(row.end(), next->top_logprobs.begin(), next->top_logprobs.end());
        ++next;
      }
      PL_CHECK(next == got.scored.end());
      if (!got.logits.empty()) outcome.logits[{part.sequence, part.start}] = got.logits;
    }
  }
  return outcome;
}

class WantedRowsTest : public testing::TestWithParam<std::tuple<Model, Mesh, int64_t>> {};

TEST_P(WantedRowsTest, BitsAreThoseOfAStepWhereAllRowsAreWanted) {
  const auto& [model, mesh, gather_bytes] = GetParam();
  const ModelConfig config = WithLayers(*ReadModelConfig(GoldenDir(model.golden)), model.num_layers);
  ASSERT_EQ(config.layers.back().mixer, model.last);
  auto ranks = StartModel(
      GoldenDir(model.golden), config,
      {.mesh = mesh, .compute_dtype = config.dtype, .threads_per_rank = 2, .gather_bytes = gather_bytes});
  const int32_t vocab = static_cast<int32_t>(config.vocab);
  const auto never = [](int, int) { return false; };
  const Outcome all = RunSteps(*ranks, vocab, {"all", [](int, int) { return true; }, {0, 1, 2, 3}});
  ASSERT_EQ(all.logprobs.size(), 151u + 71 + 34 + 300);
  std::set<std::vector<float>> distinct;
  for (const auto& [key, row] : all.logprobs) distinct.insert(row);
  EXPECT_GT(distinct.size(), all.logprobs.size() / 2);  // a row taken for another shows
  const Wanted patterns[] = {
      {"last rows", [](int, int position) { return position == 149 || position == 69 || position == 299; }},
      {"nothing but in the last step", [](int sequence, int position) { return sequence == 0 && position == 150; }},
      {"every third", [](int sequence, int position) { return (position + sequence) % 3 == 0; }},
      {"runs", [](int, int position) { return position % 17 < 9; }},
      {"tails", [](int, int position) { return position >= 60; }},
      {"logits of a whole sequence", never, {1}},
      {"logits beside single rows", [](int sequence, int position) { return sequence == 3 && position % 100 == 0; }, {0, 2}},
  };
  for (const Wanted& wanted : patterns) {
    const Outcome some = RunSteps(*ranks, vocab, wanted);
    EXPECT_GT(some.logprobs.size() + some.logits.size(), 0u) << wanted.name;
    for (const auto& [key, row] : some.logprobs) {
      EXPECT_EQ(row, all.logprobs.at(key)) << wanted.name << ": sequence " << key.first << " position " << key.second;
    }
    for (const auto& [key, logits] : some.logits) {
      EXPECT_TRUE(logits == all.logits.at(key)) << wanted.name << ": sequence " << key.first << " from " << key.second;
    }
  }
}

std::string CaseName(const testing::TestParamInfo<std::tuple<Model, Mesh, int64_t>>& info) {
  const auto& [model, mesh, gather_bytes] = info.param;
  return absl::StrCat(model.golden, "_", model.num_layers, "_layers_tp", mesh.tp, "_pp", mesh.pp,
                      gather_bytes == 0 ? "_by_rows" : "");
}

const auto kModels = testing::Values(Model{"qwen2_tied", 2, MixerKind::kAttention}, Model{"qwen3", 2, MixerKind::kAttention},
                                     Model{"qwen35_text", 4, MixerKind::kAttention},
                                     Model{"qwen35_text", 3, MixerKind::kGatedDeltaNet},
                                     Model{"mixtral", 2, MixerKind::kAttention});
INSTANTIATE_TEST_SUITE_P(Models, WantedRowsTest,
                         testing::Combine(kModels, testing::Values(Mesh{1, 1}, Mesh{1, 2}, Mesh{2, 1}, Mesh{2, 2}),
                                          testing::Values(kGatherBytes)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(ByRows, WantedRowsTest,
                         testing::Combine(kModels, testing::Values(Mesh{2, 1}, Mesh{2, 2}), testing::Values(0)), CaseName);

}  // namespace
}  // namespace plumbline
