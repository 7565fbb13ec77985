// MoeRoute, MoeMlp.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/reference/reference.h"

namespace plumbline {

using namespace reference;  // NOLINT

void ReferenceOps::DoMoeRoute(const MoeRouteArgs& args) {
  const int64_t num_experts = args.logits.dim(1), chosen = args.experts.dim(1);
  for (int64_t t = 0; t < args.experts.dim(0); ++t) {
    std::vector<float> p = Floats(args.logits, t * num_experts, num_experts);
    const float max = *std::max_element(p.begin(), p.end());
    float sum = 0;
    for (float& value : p) sum += value = std::exp(value - max);
    for (float& value : p) value /= sum;
    std::vector<int32_t> order(num_experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return p[a] > p[b]; });
    std::sort(order.begin(), order.begin() + chosen);
    float total = 0;
    for (int64_t i = 0; i < chosen; ++i) total += p[order[i]];
    for (int64_t i = 0; i < chosen; ++i) {
      args.experts.as<int32_t>()[t * chosen + i] = order[i];
      args.weights.as<float>()[t * chosen + i] = args.renormalize ? p[order[i]] / total : p[order[i]];
    }
  }
}

void ReferenceOps::DoMoeMlp(const MoeMlpArgs& args) {
  const LinearShape& up = args.gate_up_shape;
  const LinearShape& down = args.down_shape;
  const int64_t chosen = args.experts.dim(1), leaves = down.num_leaves;
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const std::vector<float> x = Floats(args.x, t * args.x.row_stride(), up.k);
    std::vector<float> sums(down.n * leaves, 0.0f);  // [D, L]
    for (int64_t i = 0; i < chosen; ++i) {
      const int64_t expert = args.experts.as<int32_t>()[t * chosen + i];
      const float weight = args.weights.as<float>()[t * chosen + i];
      const auto* gate_up = args.gate_up.as<uint8_t>() + expert * args.gate_up.dim(1);
      const auto* down_rows = reinterpret_cast<const float*>(args.down.as<uint8_t>() +
                                                             expert * args.down.dim(1));
      const std::vector<float> y = GatedRow(up, reinterpret_cast<const float*>(gate_up), x.data());
      for (int64_t n = 0; n < down.n; ++n) {
        const std::vector<float> leaf_sums = LeafSums(down, down_rows + n * down.k, y.data());
        for (int64_t l = 0; l < leaves; ++l) sums[n * leaves + l] += weight * leaf_sums[l];
      }
    }
    for (int64_t n = 0; n < down.n; ++n) {
      args.out.as<float>()[t * down.n + n] = TreeOf(sums.data() + n * leaves, leaves, 1);
    }
  }
}

}  // namespace plumbline
