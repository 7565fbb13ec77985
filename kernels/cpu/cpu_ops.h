// CpuOps: the fast CPU backend. One source file per family of ops; what depends on the instruction
// set is in files named *_scalar.cc, *_avx2.cc, *_avx512.cc, *_amx.cc (compiled with those
// instructions) and reached through tables.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/workspace.h"
#include "kernels/ops.h"

namespace plumbline {

// Element i of a dense tensor, whatever its type.
template <typename Byte>
Byte* At(const BasicTensor<Byte>& tensor, int64_t i) {
  return static_cast<Byte*>(tensor.raw()) + i * static_cast<int64_t>(SizeOf(tensor.dtype()));
}

class CpuOps final : public Ops {
 public:
  // REQUIRES: IsAvailable(arithmetic), num_threads >= 1.
  CpuOps(CpuArithmetic arithmetic, int num_threads);

  std::string_view arithmetic() const override { return NameOf(arithmetic_); }
  int64_t PackedBytes(const LinearShape& shape) const override;
  std::string_view packed_layout() const override;

 private:
  // pack.cc
  void DoPackLinear(const PackLinearArgs& args) override;
  // linear.cc
  void DoLinear(const LinearArgs& args) override;
  void DoGatedLinear(const GatedLinearArgs& args) override;
  // moe.cc
  void DoMoeRoute(const MoeRouteArgs& args) override;
  void DoMoeMlp(const MoeMlpArgs& args) override;
  // residual.cc
  void DoEmbed(const EmbedArgs& args) override;
  void DoTreeSum(const TreeSumArgs& args) override;
  void DoReduceAdd(const ReduceAddArgs& args) override;
  void DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) override;
  void DoRmsNormRows(const RmsNormRowsArgs& args) override;
  // qkv.cc
  void DoQkNormRope(const QkNormRopeArgs& args) override;
  void DoQkvLinear(const QkvLinearArgs& args) override;
  // attention.cc
  void DoRopeTable(const RopeTableArgs& args) override;
  void DoAttention(const AttentionArgs& args) override;
  // delta_net.cc
  void DoCausalConv(const CausalConvArgs& args) override;
  void DoGatedDeltaNet(const GatedDeltaNetArgs& args) override;
  void DoConvGatedDeltaNet(const ConvGatedDeltaNetArgs& args) override;
  // sampling.cc
  void DoConcatColumns(const ConcatColumnsArgs& args) override;
  void DoPenalties(const PenaltiesArgs& args) override;
  void DoSample(const SampleArgs& args) override;
  void DoLogprobs(const LogprobsArgs& args) override;

  SimdLevel simd_level() const { return SimdLevelOf(arithmetic_); }

  const CpuArithmetic arithmetic_;
  ThreadPool pool_;
  Workspace shared_;                // of the op that runs now, used by all threads
  std::vector<Workspace> scratch_;  // [num_threads], one per thread index of pool_.ParallelFor
};

}  // namespace plumbline
