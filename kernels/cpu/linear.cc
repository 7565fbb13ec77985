#include <algorithm>
#include <cstdint>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/linear_driver.h"

namespace plumbline {

const LinearTable& LinearTableOf(CpuArithmetic arithmetic) {
  static const LinearTable amx = [] {
    LinearTable table = kLinearAvx512;
    table.bf16 = kLinearAmxBf16;
    return table;
  }();
  switch (arithmetic) {
    case CpuArithmetic::kScalarV1:
      return kLinearScalar;
    case CpuArithmetic::kAvx2V1:
      return kLinearAvx2;
    case CpuArithmetic::kAvx512Bf16V1:
      return kLinearAvx512;
    case CpuArithmetic::kAmxV1:
      return amx;
  }
  return kLinearScalar;
}

namespace {

// An output that the caches will not hold until it is read: written past them, it costs one
// transfer of memory instead of two.
constexpr size_t kStreamBytes = size_t{4} << 20;

bool IsStreamed(const Tensor& out) {
  return out.num_bytes() >= kStreamBytes && reinterpret_cast<uintptr_t>(out.raw()) % 64 == 0 &&
         out.dim(1) % 16 == 0;
}

}  // namespace

void CpuOps::DoLinear(const LinearArgs& args) {
  const LinearTable& table = LinearTableOf(arithmetic_);
  const LinearKernel& kernel = KernelOf(table, args.shape.dtype);
  const LinearLayout layout(args.shape);
  const Panel panel = PreparePanel(pool_, shared_, kernel.format, layout, args.x);
  const ProductGrid grid(kernel, layout, panel.num_rows, pool_.num_threads());
  const float* bias = args.bias.empty() ? nullptr : args.bias.as<float>();
  const bool streamed = IsStreamed(args.out);
  pool_.ParallelFor(grid.num_tasks(), [&](int64_t task, int thread) {
    ProductTile tile{.kernel = kernel,
                     .layout = layout,
                     .weight = static_cast<const std::byte*>(args.weight.raw()),
                     .panel = panel};
    grid.Place(task, tile);
    float* scratch = scratch_[thread].Get<float>(TreeScratchFloats(tile));
    MultiplyTree(table, tile, scratch, [&](const BlockSums& sums) {
      const int64_t column = (tile.first_block + sums.block) * kBlockColumns;
      const int64_t num_columns = std::min<int64_t>(kBlockColumns, args.shape.n - column);
      const int64_t row = tile.first_row + sums.first_row;
      table.store({.sums = sums.data,
                   .num_rows = sums.num_rows,
                   .num_columns = static_cast<int>(num_columns),
                   .out = args.out.as<float>() + row * args.shape.n + column,
                   .out_stride = args.shape.n,
                   .out_dtype = DType::kF32,
                   .bias = bias ? bias + column : nullptr,
                   .streamed = streamed && num_columns == kBlockColumns});
    });
  });
}

void CpuOps::DoGatedLinear(const GatedLinearArgs& args) {
  const LinearTable& table = LinearTableOf(arithmetic_);
  const LinearKernel& kernel = KernelOf(table, args.shape.dtype);
  const LinearLayout layout(args.shape);
  const Panel panel = PreparePanel(pool_, shared_, kernel.format, layout, args.x);
  const ProductGrid grid(kernel, layout, panel.num_rows, pool_.num_threads());
  pool_.ParallelFor(grid.num_tasks(), [&](int64_t task, int thread) {
    ProductTile tile{.kernel = kernel,
                     .layout = layout,
                     .weight = static_cast<const std::byte*>(args.weight.raw()),
                     .panel = panel};
    grid.Place(task, tile);
    float* scratch = scratch_[thread].Get<float>(TreeScratchFloats(tile));
    MultiplyTree(table, tile, scratch, [&](const BlockSums& sums) {
      StoreGated(table, tile, sums, static_cast<std::byte*>(args.out.raw()));
    });
  });
}

}  // namespace plumbline
