// The prefix cache: what hits, what must not, what is saved where, what is given up first; against
// a plain model of it, and through the scheduler with a fake cluster that reads wrong caches aloud.
#include "coordinator/engine/prefix_cache.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/scheduler_simulation.h"

namespace plumbline {
namespace {

using ::testing::IsEmpty;

std::string Hex(const BlockHash& hash) {
  return absl::BytesToHexString(
      std::string(reinterpret_cast<const char*>(hash.bytes.data()), 8));
}

TEST(BlockHashTest, IsTheChainThatHashlibGives) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 130; ++i) tokens.push_back(i * 7 % 1000);
  const std::vector<BlockHash> base = HashPromptBlocks(tokens, "");
  ASSERT_EQ(base.size(), 2);  // 130 tokens fill two blocks
  EXPECT_EQ(Hex(base[0]), "d94f29fc6362a469");
  EXPECT_EQ(Hex(base[1]), "145108e5f0f5a1b4");
  const std::vector<BlockHash> adapted = HashPromptBlocks(tokens, "adapter/3");
  EXPECT_EQ(Hex(adapted[0]), "ad34d86dd778a280");
  EXPECT_EQ(Hex(adapted[1]), "c2ffb588aab1d4bf");
  tokens[3] = 9;  // in the first block alone
  EXPECT_NE(HashPromptBlocks(tokens, "")[1], base[1]);
}

// BlockManager against lists that are searched from end to end.
struct PlainModel {
  struct Kept {
    int name = 0;
    int32_t block = -1;
    int32_t slot = -1;
  };
  std::map<int32_t, int> references;
  std::vector<Kept> kept;
  std::vector<int32_t> idle;    // kept blocks without references, the oldest first
  std::vector<int32_t> states;  // slots with a state, the oldest first

  Kept* Of(int name) {
    const auto at = std::find_if(kept.begin(), kept.end(), [&](const Kept& k) { return k.name == name; });
    return at == kept.end() ? nullptr : &*at;
  }
  Kept* OfBlock(int32_t block) {
    const auto at = std::find_if(kept.begin(), kept.end(), [&](const Kept& k) { return k.block == block; });
    return at == kept.end() ? nullptr : &*at;
  }
};

BlockHash Named(int name) {
  BlockHash hash;
  hash.bytes[0] = static_cast<uint8_t>(name);
  return hash;
}

class RandomUse {
 public:
  explicit RandomUse(uint32_t seed)
      : random_(seed), num_blocks_(1 + random_() % 12), num_slots_(random_() % 5), blocks_(num_blocks_, num_slots_) {}

  void Run() {
    for (int i = 0; i < 400 && !testing::Test::HasFailure(); ++i) {
      switch (random_() % 6) {
        case 0: Allocate(); break;
        case 1: Keep(); break;
        case 2: Find(); break;
        case 3: Release(); break;
        case 4: SaveState(); break;
        case 5: TakeSlot(); break;
      }
      Compare();
    }
  }

 private:
  void Allocate() {
    const int64_t count = random_() % 4;
    const size_t num_uncached = num_blocks_ - model_.references.size() - model_.idle.size();
    const auto got = blocks_.Allocate(count);
    ASSERT_EQ(got.has_value(), count <= static_cast<int64_t>(num_uncached + model_.idle.size()));
    if (!got) return;
    for (size_t i = 0; i < got->size(); ++i) {
      const int32_t block = (*got)[i];
      if (i >= num_uncached) {  // the oldest idle one is given up, with its state
        ASSERT_EQ(block, model_.idle.front());
        std::erase(model_.states, model_.OfBlock(block)->slot);
        std::erase_if(model_.kept, [&](const auto& kept) { return kept.block == block; });
        model_.idle.erase(model_.idle.begin());
      }
      ASSERT_EQ(model_.OfBlock(block), nullptr);
      ASSERT_EQ(model_.references[block]++, 0);
    }
    held_.push_back(*got);
  }

  void Keep() {
    if (held_.empty() || held_.back().empty()) return;
    const int32_t block = held_.back()[random_() % held_.back().size()];
    if (model_.OfBlock(block) != nullptr) return;
    const int name = random_() % 20;
    blocks_.Keep(Named(name), block);
    if (PlainModel::Kept* known = model_.Of(name)) {
      if (std::erase(model_.idle, known->block) > 0) model_.idle.push_back(known->block);
    } else {
      model_.kept.push_back({.name = name, .block = block});
    }
  }

  void Find() {
    const int name = random_() % 20;
    const PrefixCache::Entry* entry = blocks_.cache().Find(Named(name));
    const PlainModel::Kept* known = model_.Of(name);
    ASSERT_EQ(entry != nullptr, known != nullptr);
    if (entry == nullptr) return;
    ASSERT_EQ(entry->block, known->block);
    ASSERT_EQ(entry->slot, known->slot);
    if (entry->slot >= 0) {
      blocks_.TouchState(entry->slot);
      std::erase(model_.states, known->slot);
      model_.states.push_back(known->slot);
    }
    blocks_.Share(known->block);
    std::erase(model_.idle, known->block);
    ++model_.references[known->block];
    held_.push_back({known->block});
  }

  void Release() {
    if (held_.empty()) return;
    std::swap(held_[random_() % held_.size()], held_.back());
    blocks_.Release(held_.back());
    for (auto block = held_.back().rbegin(); block != held_.back().rend(); ++block) {
      if (--model_.references[*block] > 0) continue;
      model_.references.erase(*block);
      if (model_.OfBlock(*block) != nullptr) model_.idle.push_back(*block);
    }
    held_.pop_back();
  }

  std::optional<int32_t> Slot() {
    const size_t num_plain = num_slots_ - slots_.size() - model_.states.size();
    const auto slot = blocks_.AcquireSlot();
    EXPECT_EQ(slot.has_value(), num_plain + model_.states.size() > 0);
    if (slot && num_plain == 0) {
      EXPECT_EQ(*slot, model_.states.front());
      model_.states.erase(model_.states.begin());
      for (auto& kept : model_.kept) {
        if (kept.slot == *slot) kept.slot = -1;
      }
    }
    return slot;
  }

  void SaveState() {
    if (model_.kept.empty()) return;
    const std::optional<int32_t> slot = Slot();
    if (!slot) return;
    PlainModel::Kept& kept = model_.kept[random_() % model_.kept.size()];
    blocks_.KeepState(Named(kept.name), *slot);
    if (kept.slot >= 0) return;  // free again
    kept.slot = *slot;
    model_.states.push_back(*slot);
  }

  void TakeSlot() {
    if (random_() % 2 == 0) {
      const std::optional<int32_t> slot = Slot();
      ASSERT_TRUE(!slot || slots_.insert(*slot).second);
    } else if (!slots_.empty()) {
      blocks_.ReleaseSlot(*slots_.begin());
      slots_.erase(slots_.begin());
    }
  }

  void Compare() const {
    ASSERT_EQ(blocks_.num_free_blocks(), num_blocks_ - static_cast<int64_t>(model_.references.size()));
    ASSERT_EQ(blocks_.num_free_slots(), num_slots_ - static_cast<int64_t>(slots_.size()));
    ASSERT_EQ(blocks_.cache().num_blocks(), static_cast<int64_t>(model_.kept.size()));
    ASSERT_EQ(blocks_.cache().num_states(), static_cast<int64_t>(model_.states.size()));
  }

  std::mt19937 random_;
  const int64_t num_blocks_, num_slots_;
  BlockManager blocks_;
  PlainModel model_;
  std::vector<std::vector<int32_t>> held_;
  std::set<int32_t> slots_;
};

TEST(PrefixCacheTest, RandomUseAgreesWithPlainLists) {
  for (uint32_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    RandomUse(seed).Run();
    if (HasFailure()) return;
  }
}

constexpr ClusterCapacity kAttention{.num_blocks = 64, .num_state_slots = 0, .max_step_tokens = 1024};
constexpr ClusterCapacity kHybrid{.num_blocks = 64, .num_state_slots = 6, .max_step_tokens = 1024};

// `num_common` tokens that all prompts have, then some of its own.
GenerationRequest PromptOf(int64_t num_common, int64_t num_own, uint64_t own, int64_t max_tokens = 3) {
  GenerationRequest request;
  for (int64_t i = 0; i < num_common; ++i) request.prompt.push_back(MixHash(1, i) % kFakeVocab);
  for (int64_t i = 0; i < num_own; ++i) request.prompt.push_back(MixHash(own, i) % kFakeVocab);
  request.max_tokens = max_tokens;
  return request;
}

// Runs a request alone; the plans of its steps.
std::vector<SequencePlan> RunAlone(Simulation& simulation, GenerationRequest request) {
  std::vector<SequencePlan> plans;
  simulation.Add(std::move(request));
  while (simulation.busy()) {
    if (!simulation.Schedule()) {
      ADD_FAILURE() << "nothing to do";
      return plans;
    }
    plans.push_back(simulation.plans().front().sequences[0]);
    simulation.FinishOldest();
  }
  EXPECT_THAT(simulation.problems(), IsEmpty());
  return plans;
}

class EveryKind : public testing::TestWithParam<ClusterCapacity> {};
INSTANTIATE_TEST_SUITE_P(Models, EveryKind, testing::Values(kAttention, kHybrid), [](const auto& info) {
  return info.param.num_state_slots == 0 ? "Attention" : "Hybrid";
});

TEST_P(EveryKind, TheSecondSightOfAPromptBeginsAtItsLastGridPosition) {
  for (const auto& [length, hit] : std::map<int64_t, int64_t>{
           {1, 0}, {64, 0}, {65, 64}, {128, 64}, {129, 128}, {500, 448}, {2000, 1984}}) {
    Simulation simulation(GetParam());
    EXPECT_EQ(RunAlone(simulation, PromptOf(length, 0, 0))[0].start, 0);
    const SequencePlan first = RunAlone(simulation, PromptOf(length, 0, 0))[0];
    EXPECT_EQ(first.start, hit) << length;
    EXPECT_EQ(first.num_prompt_tokens, length - hit);
    EXPECT_EQ(first.load_slot >= 0, hit > 0 && GetParam().num_state_slots > 0);
    EXPECT_EQ(simulation.scheduler().num_prefix_queries(), 2 * length);
    EXPECT_EQ(simulation.scheduler().num_prefix_hits(), hit);
  }
}

TEST_P(EveryKind, AnotherFirstTokenMissesEverything) {
  Simulation simulation(GetParam());
  RunAlone(simulation, PromptOf(500, 0, 0));
  GenerationRequest other = PromptOf(500, 0, 0);
  other.prompt[0] ^= 1;
  EXPECT_EQ(RunAlone(simulation, other)[0].start, 0);
}

TEST_P(EveryKind, ABlockBehindAnotherBeginningIsNotFound) {
  const auto join = [](uint64_t first, uint64_t second) {
    GenerationRequest request = PromptOf(0, 64, first);
    const GenerationRequest rest = PromptOf(0, 70, second);
    request.prompt.insert(request.prompt.end(), rest.prompt.begin(), rest.prompt.end());
    return request;
  };
  Simulation simulation(GetParam());
  RunAlone(simulation, join(2, 3));
  RunAlone(simulation, join(4, 5));
  RunAlone(simulation, join(4, 6));  // on a hybrid, saves the state behind the first block
  EXPECT_EQ(RunAlone(simulation, join(4, 3))[0].start, 64);
}

TEST_P(EveryKind, WhatWasGeneratedIsNotAPromptsPrefix) {
  Simulation simulation(GetParam());
  const GenerationRequest request = PromptOf(100, 0, 0, 200);
  RunAlone(simulation, request);
  GenerationRequest longer = request;
  for (const int32_t token : Undisturbed(request, 200).tokens) longer.prompt.push_back(token);
  EXPECT_EQ(RunAlone(simulation, longer)[0].start, 64);  // block 1 holds prompt and generated tokens
}

TEST_P(EveryKind, WantedRowsAreComputed) {
  Simulation simulation(GetParam());
  GenerationRequest scored = PromptOf(300, 0, 0);
  scored.num_prompt_logprobs = 0;
  RunAlone(simulation, scored);
  EXPECT_EQ(RunAlone(simulation, scored)[0].start, 0);
  GenerationRequest audited = PromptOf(300, 0, 0);
  audited.return_logits = true;
  EXPECT_EQ(RunAlone(simulation, audited)[0].start, 0);
  EXPECT_EQ(RunAlone(simulation, PromptOf(300, 0, 0))[0].start, 256);  // they left a cache behind
}

TEST_P(EveryKind, ANewEpochBeginsEmpty) {
  Simulation simulation(GetParam());
  RunAlone(simulation, PromptOf(300, 0, 0));
  simulation.NewEpoch();
  EXPECT_EQ(RunAlone(simulation, PromptOf(300, 0, 0))[0].start, 0);
}

TEST_P(EveryKind, SwitchedOffItKeepsNothing) {
  Simulation simulation(GetParam(), 8, /*cache_prefixes=*/false);
  for (int i = 0; i < 2; ++i) {
    const std::vector<SequencePlan> plans = RunAlone(simulation, PromptOf(300, 0, 0, 1));
    ASSERT_EQ(plans.size(), 1);  // not cut either
    EXPECT_EQ(plans[0].start, 0);
  }
  EXPECT_EQ(simulation.scheduler().blocks().cache().num_blocks(), 0);
}

TEST_P(EveryKind, BlocksInUseAreShared) {
  Simulation simulation(GetParam());
  simulation.Add(PromptOf(640, 5, 2, 50));
  while (simulation.scheduler().blocks().cache().num_blocks() < 10) {
    simulation.Schedule();
    simulation.FinishOldest();
  }
  simulation.Add(PromptOf(640, 5, 2, 50));
  simulation.Schedule();
  simulation.FinishOldest();
  const BlockManager& blocks = simulation.scheduler().blocks();
  EXPECT_EQ(blocks.num_blocks() - blocks.num_free_blocks(), 10 + 2);  // an end of its own each
  while (simulation.busy()) {
    simulation.Schedule();
    simulation.FinishOldest();
  }
  EXPECT_THAT(simulation.problems(), IsEmpty());
}

TEST_P(EveryKind, CachedBlocksGiveWayTheOldestFirst) {
  ClusterCapacity small = GetParam();
  small.num_blocks = 12;
  Simulation simulation(small);
  RunAlone(simulation, PromptOf(0, 260, 2));  // 4 full blocks each
  RunAlone(simulation, PromptOf(0, 260, 3));
  RunAlone(simulation, PromptOf(0, 260, 2));  // used again
  RunAlone(simulation, PromptOf(0, 380, 4));  // 6 blocks: those of 3 go
  EXPECT_EQ(RunAlone(simulation, PromptOf(0, 260, 2))[0].start, 256);
  EXPECT_LT(RunAlone(simulation, PromptOf(0, 260, 3))[0].start, 256);
  RunAlone(simulation, PromptOf(0, 12 * 64, 5, 1));  // a prompt as large as the cache gets all of it
}

TEST(PrefixCacheOnHybrids, ASharedBeginningHitsFromItsThirdSight) {
  Simulation simulation(kHybrid);
  RunAlone(simulation, PromptOf(512 + 10, 100, 2));
  const std::vector<SequencePlan> second = RunAlone(simulation, PromptOf(512 + 10, 100, 3));
  ASSERT_GE(second.size(), 3);
  EXPECT_EQ(second[0].start, 0);  // no state there yet; cut there to save one
  EXPECT_EQ(second[0].tokens.size(), 512);
  EXPECT_GE(second[0].save_slot, 0);
  EXPECT_EQ(second[1].tokens.size(), 64);
  EXPECT_GE(second[1].save_slot, 0);
  EXPECT_EQ(RunAlone(simulation, PromptOf(512 + 10, 100, 4))[0].start, 512);
}

TEST(PrefixCacheOnHybrids, AShortPromptIsNotCut) {
  Simulation simulation(kHybrid, 8, true, /*min_saved_prompt=*/512);
  const std::vector<SequencePlan> plans = RunAlone(simulation, PromptOf(511, 0, 0, 1));
  ASSERT_EQ(plans.size(), 1);
  EXPECT_EQ(plans[0].save_slot, -1);
  EXPECT_EQ(RunAlone(simulation, PromptOf(0, 512, 5, 1)).size(), 2) << "a long one is";
  // Its blocks are known all the same: where others leave it, a state is saved.
  RunAlone(simulation, PromptOf(511, 100, 6));
  EXPECT_EQ(RunAlone(simulation, PromptOf(511, 100, 7))[0].start, 448);
}

TEST(PrefixCacheOnHybrids, AStateIsSavedOnce) {
  Simulation simulation(kHybrid);
  RunAlone(simulation, PromptOf(300, 0, 0));
  GenerationRequest scored = PromptOf(300, 0, 0, 1);
  scored.num_prompt_logprobs = 0;
  const std::vector<SequencePlan> plans = RunAlone(simulation, scored);
  ASSERT_EQ(plans.size(), 1);  // whole: the state is there
  EXPECT_EQ(plans[0].save_slot, -1);
  EXPECT_EQ(simulation.scheduler().blocks().cache().num_states(), 1);
}

TEST(PrefixCacheOnHybrids, TheOnlySlotIsTheSequencesOwn) {
  ClusterCapacity one = kHybrid;
  one.num_state_slots = 1;
  Simulation simulation(one);
  for (int i = 0; i < 3; ++i) {
    const std::vector<SequencePlan> plans = RunAlone(simulation, PromptOf(300, 0, 0, 1));
    ASSERT_EQ(plans.size(), 1);
    EXPECT_EQ(plans[0].start, 0);
  }
}

TEST(PrefixCacheOnHybrids, ASavedStateBecomesTheSequencesWhenNoSlotIsLeft) {
  ClusterCapacity two = kHybrid;
  two.num_state_slots = 2;
  Simulation simulation(two);
  RunAlone(simulation, PromptOf(300, 0, 0));
  simulation.Add(PromptOf(10, 0, 0, 500));  // holds the other slot
  simulation.Schedule();
  simulation.FinishOldest();
  simulation.Add(PromptOf(300, 0, 0));
  simulation.Schedule();
  const SequencePlan& plan = simulation.plans().front().sequences.back();
  EXPECT_EQ(plan.start, 256);
  EXPECT_EQ(plan.load_slot, -1);
  while (simulation.pending() || simulation.Schedule()) simulation.FinishOldest();
  EXPECT_THAT(simulation.problems(), IsEmpty());
}

TEST(PrefixCacheOnHybrids, APreemptedSequenceTakesItsOwnPromptBack) {
  Simulation simulation({.num_blocks = 8, .num_state_slots = 4, .max_step_tokens = 256});
  simulation.Add(PromptOf(0, 100, 2, 260));
  simulation.Add(PromptOf(0, 150, 3, 200));  // the younger one: it must make room
  int64_t replay_start = -1;
  while (simulation.busy()) {
    ASSERT_TRUE(simulation.Schedule());
    for (const SequencePlan& plan : simulation.plans().front().sequences) {
      if (plan.sequence_id == 2 && simulation.scheduler().num_preemptions() > 0 && replay_start < 0) {
        replay_start = plan.start;
      }
    }
    simulation.FinishOldest();
  }
  EXPECT_GE(simulation.scheduler().num_preemptions(), 1);
  EXPECT_GE(replay_start, 64);
  EXPECT_THAT(simulation.problems(), IsEmpty());
}

// The controls: caches that hold something else must be noticed.
std::vector<std::string> ProblemsOfAHit(const std::function<void(SequencePlan&)>& damage) {
  Simulation simulation(kHybrid);
  RunAlone(simulation, PromptOf(0, 300, 2));
  RunAlone(simulation, PromptOf(300, 0, 0));
  simulation.mutate = [&](StepPlan& plan) {
    if (plan.sequences[0].load_slot >= 0) damage(plan.sequences[0]);
  };
  simulation.Add(PromptOf(300, 0, 0));
  while (simulation.busy() && simulation.Schedule()) simulation.FinishOldest();
  return simulation.problems();
}

TEST(PrefixCacheControlTest, AWrongStateOrBlockIsNoticed) {
  EXPECT_THAT(ProblemsOfAHit([](SequencePlan&) {}), IsEmpty());
  EXPECT_THAT(ProblemsOfAHit([](SequencePlan& plan) { plan.load_slot = -1; }), Not(IsEmpty()));
  EXPECT_THAT(ProblemsOfAHit([](SequencePlan& plan) { plan.load_slot = (plan.load_slot + 1) % 6; }),
              Not(IsEmpty()));
  // Block 3 of the other prompt, as a hash without its predecessors could have found.
  EXPECT_THAT(ProblemsOfAHit([](SequencePlan& plan) {
                plan.block_table[3] = (plan.block_table[3] + 64 - 5) % 64;
              }),
              Not(IsEmpty()));
}

}  // namespace
}  // namespace plumbline
