// ReferenceOps: the specification of every op, in plain loops over f32. One file per family, as in every backend.
#pragma once

#include <cstring>
#include <vector>

#include "kernels/half.h"
#include "kernels/ops.h"

namespace plumbline {

class ReferenceOps final : public Ops {
 public:
  std::string_view arithmetic() const override { return "reference-1"; }
  int64_t PackedBytes(const LinearShape& shape) const override;

 private:
  void DoPackLinear(const PackLinearArgs& args) override;
  void DoLinear(const LinearArgs& args) override;
  void DoGatedLinear(const GatedLinearArgs& args) override;
  void DoEmbed(const EmbedArgs& args) override;
  void DoTreeSum(const TreeSumArgs& args) override;
  void DoReduceAdd(const ReduceAddArgs& args) override;
  void DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) override;
  void DoRmsNormRows(const RmsNormRowsArgs& args) override;
  void DoRopeTable(const RopeTableArgs& args) override;
  void DoQkNormRope(const QkNormRopeArgs& args) override;
  void DoAttention(const AttentionArgs& args) override;
  void DoCausalConv(const CausalConvArgs& args) override;
  void DoGatedDeltaNet(const GatedDeltaNetArgs& args) override;
  void DoMoeRoute(const MoeRouteArgs& args) override;
  void DoMoeMlp(const MoeMlpArgs& args) override;
  void DoConcatColumns(const ConcatColumnsArgs& args) override;
  void DoPenalties(const PenaltiesArgs& args) override;
  void DoSample(const SampleArgs& args) override;
  void DoLogprobs(const LogprobsArgs& args) override;
};

namespace reference {

// Element i of a tensor of any float type.
inline float Load(const ConstTensor& tensor, int64_t i) {
  switch (tensor.dtype()) {
    case DType::kF32:
      return tensor.as<float>()[i];
    case DType::kBf16:
      return ToFloat(tensor.as<Bf16>()[i]);
    case DType::kF16:
      return ToFloat(tensor.as<F16>()[i]);
    default:
      PL_CHECK_MSG(false, "not a float tensor");
      return 0;
  }
}

// Rounds once to the tensor's type.
inline void Store(const Tensor& tensor, int64_t i, float value) {
  switch (tensor.dtype()) {
    case DType::kF32:
      tensor.as<float>()[i] = value;
      return;
    case DType::kBf16:
      tensor.as<Bf16>()[i] = FromFloat<Bf16>(value);
      return;
    case DType::kF16:
      tensor.as<F16>()[i] = FromFloat<F16>(value);
      return;
    default:
      PL_CHECK_MSG(false, "not a float tensor");
  }
}

// value rounded to dtype and back.
float RoundTo(DType dtype, float value);

// Elements [first, first + count) as f32.
std::vector<float> Floats(const ConstTensor& tensor, int64_t first, int64_t count);

float Sigmoid(float x);
float Silu(float x);

// Sum of values[0], values[stride], ... (num = 1, 2, 4 or 8 of them) in a balanced binary tree.
float TreeOf(const float* values, int64_t num, int64_t stride);

// The leaves of one output of a linear, not yet combined: leaf l is the f32 sum over its own k in ascending order.
std::vector<float> LeafSums(const LinearShape& shape, const float* weight_row, const float* x);

// silu(gate) * up of one row, rounded to the weight dtype: F values.
std::vector<float> GatedRow(const LinearShape& shape, const float* weight, const float* x);

}  // namespace reference
}  // namespace plumbline
