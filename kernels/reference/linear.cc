// PackLinear, Linear, GatedLinear. The packed weight is the matrix itself, row-major, as f32.
#include <algorithm>

#include "kernels/reference/reference.h"

namespace plumbline {
namespace reference {

std::vector<float> LeafSums(const LinearShape& shape, const float* weight_row, const float* x) {
  std::vector<float> sums(shape.num_leaves, 0.0f);
  for (int leaf = 0; leaf < shape.num_leaves; ++leaf) {
    const int64_t first = leaf * shape.leaf_k();
    const int64_t last = std::min(shape.k, first + shape.leaf_k());
    for (int64_t k = first; k < last; ++k) sums[leaf] += weight_row[k] * x[k];
  }
  return sums;
}

std::vector<float> GatedRow(const LinearShape& shape, const float* weight, const float* x) {
  const int64_t width = shape.n / 2;
  std::vector<float> out(width);
  for (int64_t i = 0; i < width; ++i) {
    const float gate = LeafSums(shape, weight + i * shape.k, x)[0];
    const float up = LeafSums(shape, weight + (width + i) * shape.k, x)[0];
    out[i] = RoundTo(shape.dtype, Silu(gate) * up);
  }
  return out;
}

}  // namespace reference

using namespace reference;  // NOLINT: the helpers above are this backend's own vocabulary

int64_t ReferenceOps::PackedBytes(const LinearShape& shape) const {
  return (shape.n * shape.k * 4 + 63) / 64 * 64;
}

void ReferenceOps::DoPackLinear(const PackLinearArgs& args) {
  float* packed = reinterpret_cast<float*>(args.out.as<uint8_t>());
  const int64_t columns = args.source.dim(1);
  for (int64_t row = 0; row < args.source.dim(0); ++row) {
    for (int64_t k = 0; k < args.shape.k; ++k) {
      const float value = Load(args.source, row * columns + args.first_column + k);
      packed[(args.first_row + row) * args.shape.k + k] = RoundTo(args.shape.dtype, value);
    }
  }
}

void ReferenceOps::DoLinear(const LinearArgs& args) {
  const LinearShape& shape = args.shape;
  const float* weight = reinterpret_cast<const float*>(args.weight.as<uint8_t>());
  const int64_t num_rounded = args.num_rounded();
  for (int64_t m = 0; m < args.x.dim(0); ++m) {
    const std::vector<float> x = Floats(args.x, m * args.x.row_stride(), shape.k);
    for (int64_t n = 0; n < shape.n; ++n) {
      const std::vector<float> leaves = LeafSums(shape, weight + n * shape.k, x.data());
      float sum = TreeOf(leaves.data(), shape.num_leaves, 1);
      if (!args.bias.empty()) sum += args.bias.as<float>()[n];
      if (n < num_rounded) {
        Store(args.rounded, m * args.rounded.row_stride() + n, sum);
      } else {
        Store(args.out, m * (shape.n - num_rounded) + n - num_rounded, sum);
      }
    }
  }
}

void ReferenceOps::DoGatedLinear(const GatedLinearArgs& args) {
  const float* weight = reinterpret_cast<const float*>(args.weight.as<uint8_t>());
  const int64_t width = args.shape.n / 2;
  for (int64_t m = 0; m < args.x.dim(0); ++m) {
    const std::vector<float> x = Floats(args.x, m * args.x.row_stride(), args.shape.k);
    const std::vector<float> row = GatedRow(args.shape, weight, x.data());
    for (int64_t i = 0; i < width; ++i) Store(args.out, m * args.out.row_stride() + i, row[i]);
  }
}

}  // namespace plumbline
