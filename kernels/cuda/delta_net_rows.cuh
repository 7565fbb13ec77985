// What both forms of the gated delta rule do to single rows.
#pragma once

#include "kernels/cuda/delta_net_step.h"
#include "kernels/cuda/primitives.cuh"

namespace plumbline::cuda {

struct HeadGates {
  float beta;
  float log_decay;  // <= 0
};

// beta = sigmoid(b), the log decay -exp(a_log) softplus(a + dt_bias)
PLUMBLINE_DEVICE HeadGates GatesOf(const DeltaNetStep& step, int64_t row, int head) {
  const int64_t values = int64_t{step.num_heads} * step.value_dim;
  const float* gates = step.gates + row * (values + 2 * step.num_heads) + values + head;
  const float x = gates[step.num_heads] + step.dt_bias[head];
  const float softplus = x > 20.0f ? x : log1pf(expf(x));
  return {1.0f / (1.0f + expf(-gates[0])), -expf(step.a_log[head]) * softplus};
}

PLUMBLINE_DEVICE int64_t ConvStride(const DeltaNetStep& step) {
  return 2 * int64_t{step.num_key_heads} * step.key_dim + int64_t{step.num_heads} * step.value_dim;
}
PLUMBLINE_DEVICE const float* QueryAt(const DeltaNetStep& step, int64_t row, int key_head) {
  return step.conv + row * ConvStride(step) + int64_t{key_head} * step.key_dim;
}
PLUMBLINE_DEVICE const float* KeyAt(const DeltaNetStep& step, int64_t row, int key_head) {
  return QueryAt(step, row, step.num_key_heads + key_head);
}
PLUMBLINE_DEVICE const float* ValueAt(const DeltaNetStep& step, int64_t row, int head) {
  return QueryAt(step, row, 2 * step.num_key_heads) + int64_t{head} * step.value_dim;
}
PLUMBLINE_DEVICE float* StateOf(const DeltaNetStep& step, int sequence, int head) {
  return step.state + (int64_t{step.state_slot[sequence]} * step.num_heads + head) * step.key_dim * step.value_dim;
}

// What a warp normalises a vector by; sum is a lane's part of the squares.
PLUMBLINE_DEVICE float NormFactor(float sum) { return 1.0f / sqrtf(WarpSum(sum) + 1e-6f); }
PLUMBLINE_DEVICE float QueryScale(const DeltaNetStep& step) { return 1.0f / sqrtf(static_cast<float>(step.key_dim)); }

}  // namespace plumbline::cuda
