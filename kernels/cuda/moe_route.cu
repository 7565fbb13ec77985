// MoeRoute: a warp per token. Limited by latency (K rounds of a warp's maximum), a few microseconds for a decode step.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/token_order.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr int kTokensPerBlock = 4;  // a warp each

// Sums over experts: lane l takes l, l + 32, ... in ascending order, then WarpSum; over the chosen, ascending.
__global__ void MoeRouteKernel(int32_t* experts, float* weights, const float* logits, int64_t num_tokens, int num_experts,
                               int num_chosen, int renormalize) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t token = int64_t{blockIdx.x} * kTokensPerBlock + warp;
  if (token >= num_tokens) return;
  float* p = SharedMemory<float>() + warp * num_experts;  // a lane reads what it wrote
  const float* x = logits + token * num_experts;
  float max = -INFINITY, sum = 0;
  for (int e = lane; e < num_experts; e += kWarpSize) max = fmaxf(max, x[e]);
  max = WarpMax(max);
  for (int e = lane; e < num_experts; e += kWarpSize) sum += p[e] = expf(x[e] - max);
  sum = WarpSum(sum);
  for (int e = lane; e < num_experts; e += kWarpSize) p[e] /= sum;
  uint64_t last = ~uint64_t{0};  // key of the last one chosen
  for (int i = 0; i < num_chosen; ++i) {
    uint64_t best = 0;
    for (int e = lane; e < num_experts; e += kWarpSize) {
      const uint64_t key = TokenKey(p[e], e);
      if (key < last && key > best) best = key;
    }
    last = WarpLargest(best);
  }
  const auto is_chosen = [&](int e) { return e < num_experts && TokenKey(p[e], e) >= last; };
  float total = 0;
  if (renormalize != 0) {
    for (int first = 0; first < num_experts; first += kWarpSize) {
      const int e = first + lane;
      const float own = e < num_experts ? p[e] : 0.0f;
      for (unsigned lanes = __ballot_sync(kAllLanes, is_chosen(e) ? 1 : 0); lanes != 0; lanes &= lanes - 1) {
        total += __shfl_sync(kAllLanes, own, __ffs(static_cast<int>(lanes)) - 1);
      }
    }
  }
  int num_before = 0;
  for (int first = 0; first < num_experts; first += kWarpSize) {
    const int e = first + lane;
    const unsigned lanes = __ballot_sync(kAllLanes, is_chosen(e) ? 1 : 0);
    if (is_chosen(e)) {
      const int64_t at = token * num_chosen + num_before + __popc(lanes & ((1u << lane) - 1));
      experts[at] = e;
      weights[at] = renormalize != 0 ? p[e] / total : p[e];
    }
    num_before += __popc(lanes);
  }
}

}  // namespace

void CudaOps::DoMoeRoute(const MoeRouteArgs& args) {
  const int64_t tokens = args.logits.dim(0), experts = args.logits.dim(1);
  Launch(
      {BlocksFor(tokens, kTokensPerBlock), kTokensPerBlock * kWarpSize, kTokensPerBlock * experts * sizeof(float), stream()},
      MoeRouteKernel, args.experts.as<int32_t>(), args.weights.as<float>(), args.logits.as<float>(), tokens,
      static_cast<int>(experts), static_cast<int>(args.experts.dim(1)), args.renormalize ? 1 : 0);
}

}  // namespace plumbline
