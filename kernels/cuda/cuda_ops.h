// CudaOps: the ops on one GPU, one source file per family as in every backend. Kernels are enqueued on the device's stream;
// what they read and write is device memory, also the arrays of SequenceRows, so grids follow from T, S and the shapes
// alone.
#pragma once

#include <string_view>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops.h"

namespace plumbline {

class CudaOps final : public Ops {
 public:
  // The device outlives the ops.
  explicit CudaOps(CudaDevice& device) : device_(device), workspace_(device) {}

  std::string_view arithmetic() const override { return "cuda-mma-1"; }
  int64_t PackedBytes(const LinearShape& shape) const override;

 private:
  // pack.cu
  void DoPackLinear(const PackLinearArgs& args) override;
  // linear.cu
  void DoLinear(const LinearArgs& args) override;
  void DoGatedLinear(const GatedLinearArgs& args) override;
  // residual.cu
  void DoEmbed(const EmbedArgs& args) override;
  void DoTreeSum(const TreeSumArgs& args) override;
  void DoReduceAdd(const ReduceAddArgs& args) override;
  void DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) override;
  void DoRmsNormRows(const RmsNormRowsArgs& args) override;
  // rope.cu
  void DoRopeTable(const RopeTableArgs& args) override;
  void DoQkNormRope(const QkNormRopeArgs& args) override;
  // attention.cu
  void DoAttention(const AttentionArgs& args) override;
  // conv.cu
  void DoCausalConv(const CausalConvArgs& args) override;
  // delta_net.cu
  void DoGatedDeltaNet(const GatedDeltaNetArgs& args) override;
  // moe_route.cu
  void DoMoeRoute(const MoeRouteArgs& args) override;
  // moe.cu
  void DoMoeMlp(const MoeMlpArgs& args) override;
  // logits.cu
  void DoConcatColumns(const ConcatColumnsArgs& args) override;
  void DoPenalties(const PenaltiesArgs& args) override;
  void DoLogprobs(const LogprobsArgs& args) override;
  // sample.cu
  void DoSample(const SampleArgs& args) override;

  cudaStream_t stream() const { return device_.stream(); }

  CudaDevice& device_;
  cuda::Workspace workspace_;  // of the op that runs now
};

}  // namespace plumbline
