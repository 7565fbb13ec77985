// Mixture of experts. Every rank holds its part of every expert and all of the router; the router's logits are computed
// by each rank from the same bits, so ranks agree on the routes without talking.
#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "worker/model/mlp.h"

namespace plumbline {
namespace {

class MoeMlp final : public Mlp {
 public:
  MoeMlp(const MoeConfig& config, PackedLinear router, WeightLoader::PackedExperts gate_up,
         WeightLoader::PackedExperts down)
      : config_(config),
        router_(std::move(router)),
        gate_up_(std::move(gate_up)),
        down_(std::move(down)) {}

  void Forward(const Context& context, Activations& activations, Tensor out) const override {
    const int64_t rows = activations.normed.dim(0), chosen = config_.experts_per_token;
    Scratch& scratch = *activations.scratch;
    Tensor logits = scratch.Take(DType::kF32, {rows, config_.num_experts});
    Tensor experts = scratch.Take(DType::kI32, {rows, chosen});
    Tensor weights = scratch.Take(DType::kF32, {rows, chosen});
    context.ops->Linear({.out = logits,
                         .x = activations.normed,
                         .weight = router_.packed(),
                         .shape = router_.shape});
    context.ops->MoeRoute({.experts = experts,
                           .weights = weights,
                           .logits = logits,
                           .renormalize = config_.renormalize});
    context.ops->MoeMlp({.out = out,
                         .x = activations.normed,
                         .experts = experts,
                         .weights = weights,
                         .gate_up = gate_up_.packed(),
                         .down = down_.packed(),
                         .gate_up_shape = gate_up_.shape,
                         .down_shape = down_.shape});
  }

 private:
  MoeConfig config_;
  PackedLinear router_;
  WeightLoader::PackedExperts gate_up_;
  WeightLoader::PackedExperts down_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Mlp>> LoadMoeMlp(const ModelConfig& config, const std::string& prefix,
                                                WeightLoader& loader) {
  const bool mixtral = config.model_type == "mixtral";
  const std::string self = prefix + (mixtral ? "block_sparse_moe." : "mlp.");
  const std::string gate = mixtral ? ".w1.weight" : ".gate_proj.weight";
  const std::string up = mixtral ? ".w3.weight" : ".up_proj.weight";
  const std::string down = mixtral ? ".w2.weight" : ".down_proj.weight";
  WeightLoader::ExpertNames gate_up_names, down_names;
  for (int64_t e = 0; e < config.moe.num_experts; ++e) {
    const std::string expert = absl::StrCat(self, "experts.", e);
    gate_up_names.of.push_back({expert + gate, expert + up});
    down_names.of.push_back({expert + down});
  }
  PL_ASSIGN_OR_RETURN(PackedLinear router, loader.Linear({self + "gate.weight"}));
  PL_ASSIGN_OR_RETURN(WeightLoader::PackedExperts gate_up, loader.Experts(gate_up_names));
  PL_ASSIGN_OR_RETURN(WeightLoader::PackedExperts down_experts, loader.Experts(down_names));
  return std::make_unique<MoeMlp>(config.moe, std::move(router), std::move(gate_up),
                                  std::move(down_experts));
}

int64_t MoeMlpScratchBytes(const MoeConfig& config, int64_t rows) {
  return Scratch::BytesOf(DType::kF32, rows * config.num_experts) +
         Scratch::BytesOf(DType::kI32, rows * config.experts_per_token) +
         Scratch::BytesOf(DType::kF32, rows * config.experts_per_token);
}

}  // namespace plumbline
