// plumbline bench: prefill and decode speed of a model on a shape, with the logits hash that every shape must share.
#include <CLI/CLI.hpp>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/command.h"
#include "cli/op_table.h"
#include "cli/runner_factory.h"
#include "proto/status.h"
#include "worker/host_facts.h"
#include "worker/sha256.h"

namespace plumbline {
namespace {

struct BenchFlags {
  ModelFlags model;
  int64_t prompt_tokens = 512;
  int64_t batch = 1;
  int64_t decode_tokens = 32;
  int64_t decode_context = 16;
  int64_t repetitions = 3;
  std::string transport = "threads";
  bool ops = false;
  bool json = false;
};

// Submits steps one by one and waits for each.
class StepLoop {
 public:
  explicit StepLoop(StepRunner& runner) : runner_(runner) {
    runner_.Start([this](RunnerEvent event) {
      std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
      wake_.notify_one();
    });
  }
  ~StepLoop() { runner_.Stop(); }

  absl::Status WaitReady() {
    RunnerEvent event = Next();
    if (auto* lost = std::get_if<RunnerLost>(&event)) return lost->reason;
    epoch_ = std::get<RunnerReady>(event).epoch;
    return absl::OkStatus();
  }

  absl::StatusOr<StepResult> Run(std::vector<SequencePlan> sequences) {
    runner_.Submit({.epoch = epoch_, .step = step_++, .sequences = std::move(sequences)});
    RunnerEvent event = Next();
    if (auto* lost = std::get_if<RunnerLost>(&event)) return lost->reason;
    return std::get<StepResult>(std::move(event));
  }

 private:
  RunnerEvent Next() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return !events_.empty(); });
    RunnerEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

  StepRunner& runner_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<RunnerEvent> events_;
  uint64_t epoch_ = 0;
  uint64_t step_ = 1;
};

class Bench {
 public:
  Bench(const BenchFlags& flags, StepLoop& loop, const NamedModel& model, int64_t max_step_tokens)
      : flags_(flags), loop_(loop), vocab_(model.config.vocab), max_step_tokens_(max_step_tokens) {}

  // Seconds of one prompt of `tokens`, the first token drawn.
  absl::StatusOr<double> Prefill(int64_t sequence, int64_t tokens) {
    const absl::Time start = absl::Now();
    for (int64_t at = 0; at < tokens; at += max_step_tokens_) {
      const int64_t count = std::min(max_step_tokens_, tokens - at);
      SequencePlan plan = PlanOf(sequence, at, count);
      plan.num_prompt_tokens = static_cast<int32_t>(count);
      plan.draw_token = at + count == tokens;
      PL_RETURN_IF_ERROR(loop_.Run({plan}).status());
    }
    return absl::ToDoubleSeconds(absl::Now() - start);
  }

  // Seconds of one decode step of `batch` sequences at the context where `step` is.
  absl::StatusOr<double> Decode(int64_t batch, int64_t position) {
    std::vector<SequencePlan> plans;
    for (int64_t s = 0; s < batch; ++s) {
      plans.push_back(PlanOf(s, position, 1));
      plans.back().draw_token = true;
    }
    const absl::Time start = absl::Now();
    PL_RETURN_IF_ERROR(loop_.Run(std::move(plans)).status());
    return absl::ToDoubleSeconds(absl::Now() - start);
  }

  // SHA-256 of the logits of a fixed prompt of 80 tokens and 4 generated ones.
  absl::StatusOr<std::string> LogitsHash() {
    Sha256 hash;
    constexpr int64_t kPrompt = 80;
    for (int64_t at = 0; at < kPrompt + 4; at = at == 0 ? 64 : at < kPrompt ? kPrompt : at + 1) {
      const int64_t count = at == 0 ? 64 : at < kPrompt ? kPrompt - at : 1;
      SequencePlan plan = PlanOf(0, at, count);
      plan.num_prompt_tokens = static_cast<int32_t>(at < kPrompt ? count : 0);
      plan.return_logits = true;
      PL_ASSIGN_OR_RETURN(StepResult result, loop_.Run({plan}));
      hash.Update(result.sequences[0].logits);
    }
    return hash.HexDigest();
  }

  int64_t blocks_per_sequence() const {
    return (std::max(flags_.prompt_tokens, flags_.decode_context + flags_.decode_tokens) + 127) / 64;
  }

 private:
  SequencePlan PlanOf(int64_t sequence, int64_t start, int64_t count) const {
    SequencePlan plan;
    plan.sequence_id = static_cast<uint64_t>(sequence);
    plan.start = static_cast<int32_t>(start);
    for (int64_t i = 0; i < count; ++i) {
      plan.tokens.push_back(static_cast<int32_t>((start + i + 1) * 7919 * (sequence + 1) % vocab_));
    }
    for (int64_t block = 0; block * 64 < start + count; ++block) {
      plan.block_table.push_back(static_cast<int32_t>(sequence * blocks_per_sequence() + block));
    }
    plan.state_slot = static_cast<int32_t>(sequence);
    return plan;
  }

  const BenchFlags& flags_;
  StepLoop& loop_;
  int64_t vocab_;
  int64_t max_step_tokens_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::Status RunBench(BenchFlags flags) {
  PL_ASSIGN_OR_RETURN(NamedModel model, OpenNamedModel(flags.model));
  flags.model.limits.max_sequences = std::max(flags.model.limits.max_sequences, flags.batch);
  const int64_t longest = std::max<int64_t>({flags.prompt_tokens, flags.decode_context + flags.decode_tokens, 84});
  if (longest > model.config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("--prompt-tokens: the model's context is ", model.config.max_positions));
  }
  flags.model.limits.max_tokens = std::max(flags.model.limits.max_tokens, flags.batch * (longest / 64 + 2) * 64);
  const absl::Time load_start = absl::Now();
  OpProfile profile, prefill_profile;
  PL_ASSIGN_OR_RETURN(StartedRunner started,
                      StartRunner(flags.model, model, flags.transport, flags.ops ? &profile : nullptr));
  std::vector<double> prefill, decode;
  std::string hash;
  double load_seconds = 0;
  std::vector<RankMemory> memory;
  {
    StepLoop loop(*started.runner);
    PL_RETURN_IF_ERROR(loop.WaitReady());
    load_seconds = absl::ToDoubleSeconds(absl::Now() - load_start);
    Bench bench(flags, loop, model, started.limits.max_step_tokens);
    PL_ASSIGN_OR_RETURN(hash, bench.LogitsHash());  // also the warm-up
    profile.clear();  // no op runs between steps
    for (int64_t r = 0; r < flags.repetitions; ++r) {
      PL_ASSIGN_OR_RETURN(double seconds, bench.Prefill(0, flags.prompt_tokens));
      prefill.push_back(seconds);
    }
    prefill_profile.swap(profile);
    for (int64_t s = 0; s < flags.batch; ++s) PL_RETURN_IF_ERROR(bench.Prefill(s, flags.decode_context).status());
    profile.clear();
    for (int64_t i = 0; i < flags.decode_tokens; ++i) {
      PL_ASSIGN_OR_RETURN(double seconds, bench.Decode(flags.batch, flags.decode_context + i));
      decode.push_back(seconds);
    }
    memory = started.memory();
  }
  nlohmann::ordered_json report = {
      {"prefill_tokens_per_second", static_cast<double>(flags.prompt_tokens) / Median(prefill)},
      {"decode_tokens_per_second", static_cast<double>(flags.batch) / Median(decode)},
      {"batch", flags.batch},
      {"prompt_tokens", flags.prompt_tokens},
      {"threads", ThreadsPerRank(flags.model, flags.model.mesh.size())},
      {"tp", flags.model.mesh.tp},
      {"pp", flags.model.mesh.pp},
      {"arithmetic", started.arithmetic},
      {"rss_bytes", ResidentBytes()},
      {"load_seconds", load_seconds},
      {"logits_sha256", hash}};
  report["ranks"] = nlohmann::ordered_json::array();
  for (const RankMemory& rank : memory) {
    report["ranks"].push_back({{"weight_bytes", rank.weight_bytes}, {"rss_bytes", rank.rss_bytes}});
  }
  if (flags.ops) {
    const MachineRates rates = MeasureCpuRates({.arithmetic = started.arithmetic,
                                                .num_threads = ThreadsPerRank(flags.model, 1)}, model.compute_dtype);
    std::fprintf(stderr, "this machine: %.1f GB/s read, %.0f GFLOP/s\n\nprefill of %d tokens\n%s\ndecode, batch %d\n%s\n",
                 1e-9 * rates.bytes_per_second, 1e-9 * rates.flops_per_second, static_cast<int>(flags.prompt_tokens),
                 OpTable(prefill_profile, rates, flags.repetitions).c_str(), static_cast<int>(flags.batch),
                 OpTable(profile, rates, flags.decode_tokens).c_str());
  }
  if (flags.json) {
    std::printf("%s\n", report.dump().c_str());
  } else {
    for (const auto& [key, value] : report.items()) std::printf("%-28s %s\n", key.c_str(), value.dump().c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddBench(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "prefill and decode speed of a model on a shape");
  AddModelSource(*command, flags->model);
  AddRunFlags(*command, flags->model);
  command->add_option("--prompt-tokens", flags->prompt_tokens, "of the prefill that is timed")->check(CLI::PositiveNumber);
  command->add_option("--batch", flags->batch, "sequences decoded together")->check(CLI::Range(1, 1024));
  command->add_option("--decode-tokens", flags->decode_tokens, "decode steps that are timed")->check(CLI::PositiveNumber);
  command->add_option("--decode-context", flags->decode_context, "tokens in the cache before decoding")
      ->check(CLI::PositiveNumber);
  command->add_option("--repetitions", flags->repetitions, "prefills that are timed; medians are printed")
      ->check(CLI::PositiveNumber);
  command->add_option("--transport", flags->transport, kRunnerTransportHelp)
      ->check(CLI::IsMember(RunnerTransports()));
  command->add_flag("--ops", flags->ops, "also print bytes, FLOPs, time and share of the machine's limit of each op");
  command->add_flag("--json", flags->json, "print one JSON object");
  command->footer(
      "Example: plumbline bench --model deploy/demo_model/model --device cpu --threads 2 --prompt-tokens 512 "
      "--batch 8 --json");
  command->callback([flags, &chosen] { chosen = [flags] { return RunBench(*flags); }; });
}

}  // namespace plumbline
