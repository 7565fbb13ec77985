#include "proto/status.h"
#include "worker/model/mlp.h"

namespace plumbline {
namespace {

class DenseMlp final : public Mlp {
 public:
  DenseMlp(PackedLinear gate_up, PackedLinear down)
      : gate_up_(std::move(gate_up)), down_(std::move(down)) {}

  void Forward(const Context& context, Activations& activations, Tensor out) const override {
    Tensor hidden = activations.scratch->TakeSpread(context.act, activations.normed.dim(0), down_.shape.k);
    context.ops->GatedLinear({.out = hidden,
                              .x = activations.normed,
                              .weight = gate_up_.packed(),
                              .shape = gate_up_.shape});
    context.ops->Linear({.out = out, .x = hidden, .weight = down_.packed(), .shape = down_.shape});
  }

 private:
  PackedLinear gate_up_;
  PackedLinear down_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Mlp>> LoadDenseMlp(const std::string& prefix, WeightLoader& loader) {
  PL_ASSIGN_OR_RETURN(PackedLinear gate_up,
                      loader.Gated(prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight"));
  PL_ASSIGN_OR_RETURN(PackedLinear down, loader.Linear({prefix + "mlp.down_proj.weight"}));
  return std::make_unique<DenseMlp>(std::move(gate_up), std::move(down));
}

int64_t DenseMlpScratchBytes(int64_t local_ffn, int64_t rows, DType act) {
  return Scratch::SpreadBytesOf(act, rows, local_ffn);
}

}  // namespace plumbline
