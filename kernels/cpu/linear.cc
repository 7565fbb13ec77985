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
constexpr size_t kStreamBytes = size_t{8} << 20;

bool IsStreamed(const LinearArgs& args) {
  return args.out.num_bytes() >= kStreamBytes && reinterpret_cast<uintptr_t>(args.out.raw()) % 64 == 0 &&
         args.out.dim(1) % 16 == 0 && args.num_rounded() % kBlockColumns == 0;
}

// Rows from `row` and columns from `column` of the product to where they belong.
void StoreLinear(const LinearTable& table, const LinearArgs& args, int64_t row, int64_t column,
                 const BlockSums& sums, bool streamed) {
  const int64_t num_rounded = args.num_rounded(), num_others = args.shape.n - num_rounded;
  const int64_t num_columns = std::min<int64_t>(kBlockColumns, args.shape.n - column);
  const float* bias = args.bias.empty() ? nullptr : args.bias.as<float>() + column;
  float* others = args.out.as<float>() + row * num_others + column - num_rounded;
  StoreArgs store = {.sums = sums.data, .num_rows = sums.num_rows, .bias = bias};
  if (column >= num_rounded) {
    store.num_columns = static_cast<int>(num_columns);
    store.out = others;
    store.out_stride = num_others;
    store.out_dtype = DType::kF32;
    store.streamed = streamed && num_columns == kBlockColumns;
    return table.store(store);
  }
  const int64_t rounded_here = std::min(num_columns, num_rounded - column);
  store.num_columns = static_cast<int>(rounded_here);
  store.out = args.rounded.At(row, column);
  store.out_stride = args.rounded.row_stride();
  store.out_dtype = args.rounded.dtype();
  table.store(store);
  for (int64_t r = 0; r < sums.num_rows; ++r) {  // of the one block that has both
    for (int64_t c = rounded_here; c < num_columns; ++c) {
      others[r * num_others + c] = sums.data[r * kBlockColumns + c] + (bias ? bias[c] : 0.0f);
    }
  }
}

}  // namespace

void CpuOps::DoLinear(const LinearArgs& args) {
  const LinearTable& table = LinearTableOf(arithmetic_);
  const LinearKernel& kernel = KernelOf(table, args.shape.dtype);
  const LinearLayout layout(args.shape);
  const Panel panel = PreparePanel(pool_, shared_, kernel.format, layout, args.x);
  const ProductGrid grid(kernel, layout, panel.num_rows, pool_.num_threads());
  const bool streamed = IsStreamed(args);
  pool_.ParallelFor(grid.num_tasks(), [&](int64_t task, int thread) {
    ProductTile tile{.kernel = kernel,
                     .layout = layout,
                     .weight = static_cast<const std::byte*>(args.weight.raw()),
                     .panel = panel};
    grid.Place(task, tile);
    float* scratch = scratch_[thread].Get<float>(TreeScratchFloats(tile));
    MultiplyTree(table, tile, scratch, [&](const BlockSums& sums) {
      StoreLinear(table, args, tile.first_row + sums.first_row, (tile.first_block + sums.block) * kBlockColumns, sums,
                  streamed);
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
      StoreGated(table, tile, sums, args.out);
    });
  });
}

}  // namespace plumbline
