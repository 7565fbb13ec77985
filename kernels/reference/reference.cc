#include "kernels/reference/reference.h"

#include <cmath>

#include "kernels/backend.h"

namespace plumbline {

Backend MakeReferenceBackend() { return {MakeHostDevice(), std::make_unique<ReferenceOps>()}; }

namespace reference {

float RoundTo(DType dtype, float value) {
  switch (dtype) {
    case DType::kBf16:
      return ToFloat(FromFloat<Bf16>(value));
    case DType::kF16:
      return ToFloat(FromFloat<F16>(value));
    default:
      return value;
  }
}

std::vector<float> Floats(const ConstTensor& tensor, int64_t first, int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = Load(tensor, first + i);
  return values;
}

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float Silu(float x) { return x * Sigmoid(x); }

float TreeOf(const float* values, int64_t num, int64_t stride) {
  if (num == 1) return values[0];
  return TreeOf(values, num / 2, stride) + TreeOf(values + num / 2 * stride, num / 2, stride);
}

}  // namespace reference
}  // namespace plumbline
