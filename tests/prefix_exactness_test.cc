// The prefix cache on true models: what an engine with a cache too small for its requests answers,
// mixed with other streams, evicted, preempted and cut over ranks, is to the bit what an engine
// without one answers to each request alone.
#include <random>

#include "cli/local_runner.h"
#include "coordinator/engine/engine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fake_runner.h"
#include "tests/golden_case.h"

namespace plumbline {
namespace {

constexpr int32_t kTop = 8;

struct Shape {
  Mesh mesh;
  CacheLimits limits;
  bool prefix_cache = true;
};

// An engine over the ranks of a shape, as threads.
class Served {
 public:
  Served(const std::string& dir, const Shape& shape) {
    ModelConfig config = *ReadModelConfig(dir);
    config.max_positions = 4096;  // the small models' own contexts are shorter
    auto ranks = LocalRanks::Start({.config = config,
                                    .mesh = shape.mesh,
                                    .limits = shape.limits,
                                    .compute_dtype = config.dtype,
                                    .make_backend = [] { return MakeBackend({.num_threads = 1}); },
                                    .open_weights = [dir, config](const ShardPlan& plan) {
                                      return OpenCheckpoint(dir, config, plan);
                                    }});
    PL_CHECK_MSG(ranks.ok(), ranks.status().ToString().c_str());
    runner_ = MakeLocalRunner(*std::move(ranks), shape.mesh, shape.limits);
    engine = Engine::Create({.max_running_sequences = shape.limits.max_sequences,
                             .max_context_tokens = 4096,
                             .vocab_size = config.vocab,
                             .prefix_cache = shape.prefix_cache},
                            runner_.get(), nullptr);
  }

 private:
  std::unique_ptr<StepRunner> runner_;

 public:
  std::unique_ptr<Engine> engine;  // ends before its runner
};

// What a client sees of the logits: f32 log-probabilities, compared by their bits.
struct Seen {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<int32_t> top_tokens;
  bool operator==(const Seen&) const = default;
};

Seen SeenOf(const GenerationOutput& output) {
  EXPECT_EQ(output.finish, FinishReason::kLength) << output.status;
  Seen seen{.tokens = output.tokens};
  for (const TokenLogprob& logprob : output.logprobs) {
    seen.logprobs.push_back(logprob.logprob);
    seen.logprobs.insert(seen.logprobs.end(), logprob.top_logprobs.begin(), logprob.top_logprobs.end());
    seen.top_tokens.insert(seen.top_tokens.end(), logprob.top_tokens.begin(), logprob.top_tokens.end());
  }
  EXPECT_EQ(seen.logprobs.size(), seen.tokens.size() * (1 + kTop));
  return seen;
}

// `num_common` tokens that all have, then some of its own. Vocabularies hold 256 tokens and more.
GenerationRequest PromptOf(int64_t num_common, int64_t num_own, uint64_t own, int64_t max_tokens) {
  GenerationRequest request;
  for (int64_t i = 0; i < num_common; ++i) request.prompt.push_back(static_cast<int32_t>(MixHash(1, i) % 256));
  for (int64_t i = 0; i < num_own; ++i) request.prompt.push_back(static_cast<int32_t>(MixHash(own, i) % 256));
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.sampling = {.seed = own};
  request.num_top_logprobs = kTop;
  return request;
}

GenerationOutput RunOn(Engine& engine, GenerationRequest request) {
  Collected collected;
  EXPECT_TRUE(engine.Submit(std::move(request), collected.Sink()).ok());
  EXPECT_TRUE(collected.Wait());
  EXPECT_TRUE(Eventually([&] { return engine.Stats().running == 0; }));
  return std::move(collected.all);
}

class PrefixExactnessTest : public testing::TestWithParam<std::string> {};

TEST_P(PrefixExactnessTest, AHitOfAnyLengthGivesTheBitsOfAMiss) {
  const CacheLimits limits = {.max_tokens = 8192, .max_sequences = 2, .max_step_tokens = 512, .max_cached_states = 8};
  Served cold(GetParam(), {.limits = limits, .prefix_cache = false});
  Served warm(GetParam(), {.limits = limits});
  for (const int64_t hit : {0, 64, 512, 2048}) {
    // The first one leaves blocks, and a state right at `hit`; the second one goes its own way from there.
    RunOn(*warm.engine, PromptOf(hit, 30, 100 + hit, 2));
    const uint64_t hits_before = warm.engine->Stats().prefix_hit_tokens;
    const GenerationRequest request = PromptOf(hit, 90, 200 + hit, 5);
    const Seen expected = SeenOf(RunOn(*cold.engine, request));
    EXPECT_EQ(SeenOf(RunOn(*warm.engine, request)), expected) << hit;
    EXPECT_EQ(warm.engine->Stats().prefix_hit_tokens - hits_before, hit);
  }
  EXPECT_EQ(cold.engine->Stats().prefix_query_tokens, 0);
}

TEST_P(PrefixExactnessTest, SmallCachesAndManyStreamsGiveTheBitsOfARequestAlone) {
  std::mt19937 random(5);
  std::vector<GenerationRequest> requests;
  for (uint64_t i = 0; i < 24; ++i) {
    requests.push_back(PromptOf(random() % 3 * 64 + random() % 130, 1 + random() % 90, i % 7 + 2, 20 + random() % 60));
    // Every block in one of two ways, so that equal blocks stand behind different ones.
    std::vector<int32_t>& prompt = requests.back().prompt;
    for (size_t at = 0; at < prompt.size(); at += kGridTokens) prompt[at] = static_cast<int32_t>(random() % 2);
  }
  Served cold(GetParam(), {.limits = {.max_tokens = 1024, .max_sequences = 1, .max_step_tokens = 512},
                           .prefix_cache = false});
  std::vector<Seen> expected;
  for (const GenerationRequest& request : requests) expected.push_back(SeenOf(RunOn(*cold.engine, request)));
  uint64_t hits = 0, preemptions = 0;
  for (const Mesh mesh : {Mesh{}, Mesh{.tp = 2, .pp = 1}, Mesh{.tp = 1, .pp = 2}}) {
    Served warm(GetParam(), {.mesh = mesh,
                             .limits = {.max_tokens = 9 * 64,
                                        .max_sequences = 4,
                                        .max_step_tokens = 192,
                                        .max_cached_states = 2}});
    std::vector<Collected> collected(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_TRUE(warm.engine->Submit(requests[i], collected[i].Sink()).ok());
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_TRUE(collected[i].Wait());
      EXPECT_EQ(SeenOf(collected[i].all), expected[i]) << "request " << i << ", tp " << mesh.tp << " pp " << mesh.pp;
    }
    ASSERT_TRUE(warm.engine->Drain(absl::Now() + absl::Seconds(20)));  // the sinks have returned
    hits += warm.engine->Stats().prefix_hit_tokens;
    preemptions += warm.engine->Stats().preemptions;
  }
  EXPECT_GT(hits, 1000);  // the requests must reach what they are for
  EXPECT_GT(preemptions, 0);
}

std::vector<std::string> ModelDirs() {
  return {DemoModelDir(), GoldenDir("qwen35_text"), GoldenDir("qwen35_vl"), GoldenDir("qwen3"), GoldenDir("mixtral")};
}

INSTANTIATE_TEST_SUITE_P(Models, PrefixExactnessTest, testing::ValuesIn(ModelDirs()), [](const auto& info) {
  return info.param == DemoModelDir() ? std::string("demo") : info.param.substr(info.param.rfind('/') + 1);
});

}  // namespace
}  // namespace plumbline
