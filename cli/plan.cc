// plumbline plan: what every rank of every shape would hold, in exact bytes, whether it fits, and how fast it should be.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/command.h"
#include "cli/device_kinds.h"
#include "cli/model_flags.h"
#include "kernels/backend.h"
#include "proto/status.h"

namespace plumbline {
namespace {

struct PlanFlags {
  ModelFlags model;
  std::vector<std::string> devices;  // NAME:COUNT
  int64_t prompt_tokens = 512, batch = 1, context = 32;  // whose speed is predicted
  bool one_shape = false;            // --tp or --pp was given
  bool json = false;
};

struct Budget {
  DeviceKind device;
  int max_ranks = 0;
};

absl::StatusOr<Budget> BudgetOf(const std::string& device, const PlanFlags& flags, const NamedModel& model) {
  const std::vector<std::string> parts = absl::StrSplit(device, ':');
  int count = 1;
  if (parts.size() > 2 || (parts.size() == 2 && (!absl::SimpleAtoi(parts[1], &count) || count < 1))) {
    return absl::InvalidArgumentError(absl::StrCat("--device '", device, "': expected NAME:COUNT"));
  }
  if (parts[0] == "cpu") {
    const std::string arithmetic = flags.model.arithmetic.empty() ? CpuArithmetics().front() : flags.model.arithmetic;
    return Budget{ThisCpu(count, arithmetic, ThreadsPerRank(flags.model, 1), model.compute_dtype), count};
  }
  std::string known = "cpu";
  for (const DeviceKind& kind : KnownGpus()) {
    if (parts[0] == kind.name) return Budget{kind, count};
    absl::StrAppend(&known, ", ", kind.name);
  }
  return absl::InvalidArgumentError(absl::StrCat("--device '", parts[0], "' is unknown; known are: ", known));
}

// Tokens per second of one prompt, and of sequences that decode together.
struct Prediction {
  double prefill = 0, decode = 0;
};

Prediction Predict(const PlanFlags& flags, const NamedModel& model, const ShardPlan& plan, int64_t max_step_tokens,
                   const DeviceSpeed& device) {
  double prefill = 0;
  for (int64_t at = 0; at < flags.prompt_tokens; at += max_step_tokens) {
    const int64_t rows = std::min(max_step_tokens, flags.prompt_tokens - at);
    prefill += StepSeconds(model.config, plan, model.compute_dtype, device, {.rows = rows, .context = at, .prompt = true});
  }
  const double decode = StepSeconds(model.config, plan, model.compute_dtype, device,
                                    {.num_sequences = flags.batch, .context = flags.context});
  return {static_cast<double>(flags.prompt_tokens) / prefill, static_cast<double>(flags.batch) / decode};
}

nlohmann::ordered_json RankJson(const RankBytes& rank) {
  return {{"rank", rank.rank}, {"stage", rank.stage}, {"tp_index", rank.tp_index}, {"parameters", rank.parameters},
          {"checkpoint_bytes", rank.checkpoint_bytes}, {"weight_bytes", rank.weight_bytes}, {"kv_bytes", rank.kv_bytes},
          {"state_bytes", rank.state_bytes}, {"activation_bytes", rank.activation_bytes}, {"total_bytes", rank.total()}};
}

void PrintRanks(const std::vector<RankBytes>& ranks) {
  constexpr double kGiB = 1 << 30;
  for (const RankBytes& rank : ranks) {
    std::printf("  rank %2d (stage %d, tp %d): weights %14lld B (%7.2f GiB)  kv %7.2f  state %6.2f  "
                "activations %6.2f  total %8.2f GiB\n",
                rank.rank, rank.stage, rank.tp_index, static_cast<long long>(rank.weight_bytes),
                static_cast<double>(rank.weight_bytes) / kGiB, static_cast<double>(rank.kv_bytes) / kGiB,
                static_cast<double>(rank.state_bytes) / kGiB, static_cast<double>(rank.activation_bytes) / kGiB,
                static_cast<double>(rank.total()) / kGiB);
  }
}

std::vector<Mesh> MeshesOf(const PlanFlags& flags) {
  if (flags.one_shape) return {flags.model.mesh};
  std::vector<Mesh> meshes;
  for (const int tp : {1, 2, 4, 8}) {
    for (const int pp : {1, 2, 4}) meshes.push_back({tp, pp});
  }
  return meshes;
}

absl::Status RunPlan(const PlanFlags& flags) {
  PL_ASSIGN_OR_RETURN(NamedModel model, OpenNamedModel(flags.model));
  const CacheLimits limits = LimitsFor(flags.model, model);
  std::vector<Budget> budgets;
  for (const std::string& device : flags.devices) {
    PL_ASSIGN_OR_RETURN(budgets.emplace_back(), BudgetOf(device, flags, model));
  }
  nlohmann::ordered_json shapes = nlohmann::ordered_json::array();
  if (!flags.json) {
    std::printf("%s, %lld layers; KV cache of %lld tokens, %lld sequences and %lld cached states, "
                "steps of %lld tokens; KV %lld B per token\n",
                model.config.model_type.c_str(), static_cast<long long>(model.config.num_layers()),
                static_cast<long long>(limits.max_tokens), static_cast<long long>(limits.max_sequences),
                static_cast<long long>(limits.max_cached_states),
                static_cast<long long>(limits.max_step_tokens),
                static_cast<long long>(KvBytesPerToken(model.config, model.compute_dtype)));
  }
  for (const Mesh mesh : MeshesOf(flags)) {
    absl::StatusOr<ShardPlan> plan = ShardPlan::Make(model.config, mesh);
    if (!plan.ok()) {
      if (flags.one_shape) return plan.status();
      if (!flags.json) std::printf("tp %d x pp %d: %s\n", mesh.tp, mesh.pp, std::string(plan.status().message()).c_str());
      continue;
    }
    const std::vector<RankBytes> ranks = PlanMemory(model.config, *plan, limits, model.compute_dtype);
    nlohmann::ordered_json shape = {{"tp", mesh.tp}, {"pp", mesh.pp}, {"ranks", nlohmann::ordered_json::array()}};
    for (const RankBytes& rank : ranks) shape["ranks"].push_back(RankJson(rank));
    if (!flags.json) {
      std::printf("tp %d x pp %d\n", mesh.tp, mesh.pp);
      PrintRanks(ranks);
    }
    for (const Budget& budget : budgets) {
      absl::Status fits = mesh.size() > budget.max_ranks
                              ? absl::ResourceExhaustedError(absl::StrCat("needs ", mesh.size(), " devices"))
                              : CheckFits(ranks, budget.device.bytes);
      const std::string& name = budget.device.name;
      const Prediction speed = Predict(flags, model, *plan, limits.max_step_tokens, budget.device.speed);
      shape["fits"][name] = fits.ok();
      shape["predicted"][name] = {{"prefill_tokens_per_second", speed.prefill}, {"decode_tokens_per_second", speed.decode}};
      if (flags.json) continue;
      std::printf("  %s:%d ", name.c_str(), budget.max_ranks);
      if (fits.ok()) {
        std::printf("fits; predicted tokens/s: prefill %lld %.0f, decode b=%lld %.1f\n",
                    static_cast<long long>(flags.prompt_tokens), speed.prefill, static_cast<long long>(flags.batch),
                    speed.decode);
      } else {
        std::printf("does not fit: %s\n", std::string(fits.message()).c_str());
      }
    }
    shapes.push_back(std::move(shape));
  }
  if (flags.json) std::printf("%s\n", shapes.dump().c_str());
  return absl::OkStatus();
}

}  // namespace

void AddPlan(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* command = app.add_subcommand(
      "plan", "exact bytes of every rank for every cluster shape; fit or no fit; predicted speed");
  AddModelSource(*command, flags->model);
  command->add_option("--tp", flags->model.mesh.tp, "only this tensor-parallel size")->check(CLI::IsMember({1, 2, 4, 8}));
  command->add_option("--pp", flags->model.mesh.pp, "only this number of pipeline stages")->check(CLI::Range(1, 64));
  command->add_option("--device", flags->devices,
                      "NAME:COUNT to check the fit against and predict the speed of, e.g. h100:4 or cpu:2; repeatable");
  command->add_option("--prompt-tokens", flags->prompt_tokens, "of the prompt whose speed is predicted")
      ->check(CLI::PositiveNumber);
  command->add_option("--batch", flags->batch, "sequences decoding together")->check(CLI::PositiveNumber);
  command->add_option("--context", flags->context, "tokens in the cache while decoding")->check(CLI::NonNegativeNumber);
  command->add_option("--threads", flags->model.threads, "of this machine, for --device cpu; 0: all");
  command->add_option("--arithmetic", flags->model.arithmetic, "of this machine, for --device cpu")
      ->check(CLI::IsMember(CpuArithmetics()));
  command->add_option("--compute-dtype", flags->model.compute_dtype, "auto or f32")->check(CLI::IsMember({"auto", "f32"}));
  command->add_option("--max-tokens", flags->model.limits.max_tokens, "KV cache in tokens");
  command->add_option("--max-sequences", flags->model.limits.max_sequences, "sequences under way at once");
  command->add_option("--max-step-tokens", flags->model.limits.max_step_tokens, "tokens of one step");
  AddPrefixCacheFlags(*command, flags->model);
  command->add_flag("--json", flags->json, "print JSON");
  command->footer("Example: plumbline plan --config tests/golden/configs/qwen3.6-27b.json --device h100:4");
  command->callback([flags, command, &chosen] {
    flags->one_shape = command->count("--tp") + command->count("--pp") > 0;
    chosen = [flags] { return RunPlan(*flags); };
  });
}

}  // namespace plumbline
