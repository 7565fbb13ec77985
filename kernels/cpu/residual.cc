// Embed, TreeSum, ReduceAdd, ReduceAddRmsNorm, RmsNormRows.
#include <algorithm>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/fetch.h"
#include "kernels/cpu/sequence_kernels.h"

namespace plumbline {
namespace {

constexpr int64_t kElementsPerTask = 16384;

}  // namespace

void CpuOps::DoEmbed(const EmbedArgs& args) {
  constexpr int64_t kRowsAhead = 4;
  const int64_t num_tokens = args.tokens.dim(0);
  const int64_t hidden = args.table.dim(1), row_bytes = hidden * static_cast<int64_t>(SizeOf(args.table.dtype()));
  const auto widen = SequenceKernelsOf(arithmetic_).widen_row[ActIndex(args.table.dtype())];
  const auto row_of = [&](int64_t t) { return args.tokens.as<int32_t>()[t] - args.vocab_begin; };
  pool_.ParallelFor(num_tokens, [&](int64_t t, int) {
    if (t + kRowsAhead < num_tokens) Fetch(args.table.At(row_of(t + kRowsAhead), 0), row_bytes);
    float* out = args.out.as<float>() + t * hidden;
    const int64_t row = row_of(t);
    if (row < 0 || row >= args.table.dim(0)) {
      std::fill(out, out + hidden, 0.0f);
    } else {
      widen(out, args.table.At(row, 0), hidden);
    }
  });
}

void CpuOps::DoTreeSum(const TreeSumArgs& args) {
  const int64_t size = args.out.num_elements();
  const auto add = SequenceKernelsOf(arithmetic_).add_partials;
  pool_.ParallelFor((size + kElementsPerTask - 1) / kElementsPerTask, [&](int64_t task, int) {
    const int64_t begin = task * kElementsPerTask;
    add({.out = args.out.as<float>() + begin, .addend = nullptr, .partials = args.partials.as<float>() + begin,
         .slice = size, .num_partials = static_cast<int>(args.partials.dim(0))},
        std::min(kElementsPerTask, size - begin));
  });
}

void CpuOps::DoReduceAdd(const ReduceAddArgs& args) {
  const int64_t size = args.h.num_elements();
  const auto add = SequenceKernelsOf(arithmetic_).add_partials;
  pool_.ParallelFor((size + kElementsPerTask - 1) / kElementsPerTask, [&](int64_t task, int) {
    const int64_t begin = task * kElementsPerTask;
    float* h = args.h.as<float>() + begin;
    add({.out = h, .addend = h, .partials = args.partials.as<float>() + begin, .slice = size,
         .num_partials = static_cast<int>(args.partials.dim(0))},
        std::min(kElementsPerTask, size - begin));
  });
}

void CpuOps::DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) {
  const int64_t rows = args.h.dim(0), hidden = args.h.dim(1);
  const SequenceKernels& kernels = SequenceKernelsOf(arithmetic_);
  const auto norm = kernels.rms_norm_row[ActIndex(args.out.dtype())];
  pool_.ParallelFor(rows, [&](int64_t t, int) {
    float* h = args.h.as<float>() + t * hidden;
    if (!args.partials.empty()) {
      kernels.add_partials({.out = h, .addend = h, .partials = args.partials.as<float>() + t * hidden,
                            .slice = rows * hidden, .num_partials = static_cast<int>(args.partials.dim(0))},
                           hidden);
    }
    norm({.out = args.out.At(t, 0), .x = h,
          .weight = args.weight.as<float>(), .weight_offset = args.weight_offset, .eps = args.eps},
         hidden);
  });
}

void CpuOps::DoRmsNormRows(const RmsNormRowsArgs& args) {
  const int64_t hidden = args.h.dim(1);
  const int64_t out_bytes = hidden * static_cast<int64_t>(SizeOf(args.out.dtype()));
  const auto norm = SequenceKernelsOf(arithmetic_).rms_norm_row[ActIndex(args.out.dtype())];
  pool_.ParallelFor(args.rows.dim(0), [&](int64_t r, int) {
    norm({.out = static_cast<std::byte*>(args.out.raw()) + r * out_bytes,
          .x = args.h.as<float>() + args.rows.as<int32_t>()[r] * hidden, .weight = args.weight.as<float>(),
          .weight_offset = args.weight_offset, .eps = args.eps},
         hidden);
  });
}

}  // namespace plumbline
