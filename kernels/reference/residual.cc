// Embed, TreeSum, ReduceAdd, ReduceAddRmsNorm, RmsNormRows: what happens to the residual stream.
#include <cmath>

#include "kernels/reference/reference.h"

namespace plumbline {

using namespace reference;  // NOLINT

namespace {

struct Norm {
  const float* weight;  // [D]
  float weight_offset;
  float eps;
};

// out row `to` = norm of the D values at h.
void NormRow(const Tensor& out, int64_t to, const float* h, int64_t hidden, const Norm& norm) {
  float sum = 0;
  for (int64_t i = 0; i < hidden; ++i) sum += h[i] * h[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(hidden) + norm.eps);
  for (int64_t i = 0; i < hidden; ++i) {
    Store(out, to * out.row_stride() + i, h[i] * scale * (norm.weight_offset + norm.weight[i]));
  }
}

}  // namespace

void ReferenceOps::DoEmbed(const EmbedArgs& args) {
  const int64_t hidden = args.table.dim(1);
  for (int64_t t = 0; t < args.tokens.dim(0); ++t) {
    const int64_t row = args.tokens.as<int32_t>()[t] - args.vocab_begin;
    const bool mine = row >= 0 && row < args.table.dim(0);
    for (int64_t i = 0; i < hidden; ++i) {
      args.out.as<float>()[t * hidden + i] = mine ? Load(args.table, row * hidden + i) : 0.0f;
    }
  }
}

void ReferenceOps::DoTreeSum(const TreeSumArgs& args) {
  const int64_t size = args.out.num_elements();
  for (int64_t i = 0; i < size; ++i) {
    args.out.as<float>()[i] = TreeOf(args.partials.as<float>() + i, args.partials.dim(0), size);
  }
}

void ReferenceOps::DoReduceAdd(const ReduceAddArgs& args) {
  const int64_t size = args.h.num_elements();
  for (int64_t i = 0; i < size; ++i) {
    args.h.as<float>()[i] += TreeOf(args.partials.as<float>() + i, args.partials.dim(0), size);
  }
}

void ReferenceOps::DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) {
  if (!args.partials.empty()) DoReduceAdd({.h = args.h, .partials = args.partials});
  const Norm norm = {args.weight.as<float>(), args.weight_offset, args.eps};
  const int64_t hidden = args.h.dim(1);
  for (int64_t t = 0; t < args.h.dim(0); ++t) {
    NormRow(args.out, t, args.h.as<float>() + t * hidden, hidden, norm);
  }
}

void ReferenceOps::DoRmsNormRows(const RmsNormRowsArgs& args) {
  const Norm norm = {args.weight.as<float>(), args.weight_offset, args.eps};
  const int64_t hidden = args.h.dim(1);
  for (int64_t r = 0; r < args.rows.dim(0); ++r) {
    NormRow(args.out, r, args.h.as<float>() + args.rows.as<int32_t>()[r] * hidden, hidden, norm);
  }
}

}  // namespace plumbline
