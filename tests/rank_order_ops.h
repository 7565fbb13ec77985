// The control of the exactness tests: a backend whose sums over ranks run in rank order, ((0+1)+2)+3, instead of the
// balanced tree. Everything else is the backend it wraps.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "kernels/backend.h"

namespace plumbline {

class RankOrderOps final : public Ops {
 public:
  explicit RankOrderOps(std::unique_ptr<Ops> inner) : inner_(std::move(inner)) {}

  std::string_view arithmetic() const override { return inner_->arithmetic(); }
  int64_t PackedBytes(const LinearShape& shape) const override { return inner_->PackedBytes(shape); }
  std::string_view packed_layout() const override { return inner_->packed_layout(); }

 private:
  // The slices of partials [L, ...] added one after the other, as one slice.
  ConstTensor Sum(const ConstTensor& partials) {
    if (partials.empty()) return {};
    const int64_t size = partials.num_elements() / partials.dim(0);
    sum_.assign(partials.as<float>(), partials.as<float>() + size);
    for (int64_t l = 1; l < partials.dim(0); ++l) {
      for (int64_t i = 0; i < size; ++i) sum_[i] += partials.as<float>()[l * size + i];
    }
    Shape shape = partials.shape();
    shape.dims[0] = 1;
    return {sum_.data(), DType::kF32, shape};
  }

  void DoTreeSum(const TreeSumArgs& args) override {
    inner_->TreeSum({.out = args.out, .partials = Sum(args.partials)});
  }
  void DoReduceAdd(const ReduceAddArgs& args) override {
    inner_->ReduceAdd({.h = args.h, .partials = Sum(args.partials)});
  }
  void DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) override {
    ReduceAddRmsNormArgs changed = args;
    changed.partials = Sum(args.partials);
    inner_->ReduceAddRmsNorm(changed);
  }

  void DoPackLinear(const PackLinearArgs& args) override { inner_->PackLinear(args); }
  void DoLinear(const LinearArgs& args) override { inner_->Linear(args); }
  void DoGatedLinear(const GatedLinearArgs& args) override { inner_->GatedLinear(args); }
  void DoEmbed(const EmbedArgs& args) override { inner_->Embed(args); }
  void DoRmsNormRows(const RmsNormRowsArgs& args) override { inner_->RmsNormRows(args); }
  void DoRopeTable(const RopeTableArgs& args) override { inner_->RopeTable(args); }
  void DoQkNormRope(const QkNormRopeArgs& args) override { inner_->QkNormRope(args); }
  void DoAttention(const AttentionArgs& args) override { inner_->Attention(args); }
  void DoCausalConv(const CausalConvArgs& args) override { inner_->CausalConv(args); }
  void DoGatedDeltaNet(const GatedDeltaNetArgs& args) override { inner_->GatedDeltaNet(args); }
  void DoMoeRoute(const MoeRouteArgs& args) override { inner_->MoeRoute(args); }
  void DoMoeMlp(const MoeMlpArgs& args) override { inner_->MoeMlp(args); }
  void DoConcatColumns(const ConcatColumnsArgs& args) override { inner_->ConcatColumns(args); }
  void DoPenalties(const PenaltiesArgs& args) override { inner_->Penalties(args); }
  void DoSample(const SampleArgs& args) override { inner_->Sample(args); }
  void DoLogprobs(const LogprobsArgs& args) override { inner_->Logprobs(args); }

  std::unique_ptr<Ops> inner_;
  std::vector<float> sum_;
};

}  // namespace plumbline
