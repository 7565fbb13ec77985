#include "kernels/profiled_ops.h"

#include <chrono>
#include <initializer_list>
#include <string_view>
#include <utility>

namespace plumbline {
namespace {

class ProfiledOps final : public Ops {
 public:
  ProfiledOps(std::unique_ptr<Ops> inner, OpProfile& profile) : inner_(std::move(inner)), profile_(profile) {}

  std::string_view arithmetic() const override { return inner_->arithmetic(); }
  int64_t PackedBytes(const LinearShape& shape) const override { return inner_->PackedBytes(shape); }
  std::string_view packed_layout() const override { return inner_->packed_layout(); }

 private:
  using Sizes = std::initializer_list<int64_t>;

  template <typename Args>
  void Time(std::string_view name, Sizes sizes, void (Ops::*op)(const Args&), const Args& args) {
    const auto start = std::chrono::steady_clock::now();
    (inner_.get()->*op)(args);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::string label(name);
    std::string_view separator = " ";
    for (int64_t size : sizes) {
      label.append(separator).append(std::to_string(size));
      separator = " x ";
    }
    OpTotals& totals = profile_[label];
    ++totals.num_calls;
    totals.seconds += seconds.count();
    totals.cost += CostOf(args);
  }

  void DoPackLinear(const PackLinearArgs& args) override {
    Time("PackLinear", {args.source.dim(0), args.shape.k}, &Ops::PackLinear, args);
  }
  void DoLinear(const LinearArgs& args) override {
    Time("Linear", {args.x.dim(0), args.shape.n, args.shape.k}, &Ops::Linear, args);
  }
  void DoGatedLinear(const GatedLinearArgs& args) override {
    Time("GatedLinear", {args.x.dim(0), args.shape.n, args.shape.k}, &Ops::GatedLinear, args);
  }
  void DoEmbed(const EmbedArgs& args) override {
    Time("Embed", {args.out.dim(0), args.out.dim(1)}, &Ops::Embed, args);
  }
  void DoTreeSum(const TreeSumArgs& args) override {
    Time("TreeSum", {args.out.num_elements()}, &Ops::TreeSum, args);
  }
  void DoReduceAdd(const ReduceAddArgs& args) override {
    Time("ReduceAdd", {args.h.dim(0), args.h.dim(1)}, &Ops::ReduceAdd, args);
  }
  void DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) override {
    Time("ReduceAddRmsNorm", {args.h.dim(0), args.h.dim(1)}, &Ops::ReduceAddRmsNorm, args);
  }
  void DoRmsNormRows(const RmsNormRowsArgs& args) override {
    Time("RmsNormRows", {args.out.dim(0), args.out.dim(1)}, &Ops::RmsNormRows, args);
  }
  void DoRopeTable(const RopeTableArgs& args) override {
    Time("RopeTable", {args.cos.dim(0), args.cos.dim(1)}, &Ops::RopeTable, args);
  }
  void DoQkNormRope(const QkNormRopeArgs& args) override {
    Time("QkNormRope", {args.q.dim(0), args.qkv.dim(1)}, &Ops::QkNormRope, args);
  }
  void DoQkvLinear(const QkvLinearArgs& args) override {
    Time("QkvLinear", {args.linear.x.dim(0), args.linear.shape.n, args.linear.shape.k}, &Ops::QkvLinear, args);
  }
  void DoAttention(const AttentionArgs& args) override {
    Time("Attention", {args.q.dim(0), args.q.dim(1), args.q.dim(2)}, &Ops::Attention, args);
  }
  void DoCausalConv(const CausalConvArgs& args) override {
    Time("CausalConv", {args.x.dim(0), args.x.dim(1)}, &Ops::CausalConv, args);
  }
  void DoGatedDeltaNet(const GatedDeltaNetArgs& args) override {
    const Shape& state = args.state.shape();
    Time("GatedDeltaNet", {args.out.dim(0), state[1], state[2], state[3]}, &Ops::GatedDeltaNet, args);
  }
  void DoConvGatedDeltaNet(const ConvGatedDeltaNetArgs& args) override {
    const Shape& state = args.delta.state.shape();
    Time("ConvGatedDeltaNet", {args.delta.out.dim(0), state[1], state[2], state[3]}, &Ops::ConvGatedDeltaNet, args);
  }
  void DoMoeRoute(const MoeRouteArgs& args) override {
    Time("MoeRoute", {args.logits.dim(0), args.logits.dim(1)}, &Ops::MoeRoute, args);
  }
  void DoMoeMlp(const MoeMlpArgs& args) override {
    Time("MoeMlp", {args.x.dim(0), args.gate_up_shape.n, args.gate_up_shape.k}, &Ops::MoeMlp, args);
  }
  void DoConcatColumns(const ConcatColumnsArgs& args) override {
    Time("ConcatColumns", {args.out.dim(0), args.out.dim(1)}, &Ops::ConcatColumns, args);
  }
  void DoPenalties(const PenaltiesArgs& args) override {
    Time("Penalties", {args.logits.dim(0), args.logits.dim(1)}, &Ops::Penalties, args);
  }
  void DoSample(const SampleArgs& args) override {
    Time("Sample", {args.logits.dim(0), args.logits.dim(1)}, &Ops::Sample, args);
  }
  void DoLogprobs(const LogprobsArgs& args) override {
    Time("Logprobs", {args.logits.dim(0), args.logits.dim(1)}, &Ops::Logprobs, args);
  }

  std::unique_ptr<Ops> inner_;
  OpProfile& profile_;
};

}  // namespace

std::unique_ptr<Ops> MakeProfiledOps(std::unique_ptr<Ops> inner, OpProfile& profile) {
  return std::make_unique<ProfiledOps>(std::move(inner), profile);
}

}  // namespace plumbline
