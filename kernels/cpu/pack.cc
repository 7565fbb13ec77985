#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/linear_layout.h"
#include "kernels/half.h"

namespace plumbline {
namespace {

template <typename From, typename To>
void Convert(const std::byte* from, std::byte* to) {
  From value;
  std::memcpy(&value, from, sizeof value);
  const To result = FromFloat<To>(ToFloat(value));
  std::memcpy(to, &result, sizeof result);
}

template <typename From>
void ConvertFrom(const std::byte* from, std::byte* to, DType to_dtype) {
  if (to_dtype == DType::kF32) return Convert<From, float>(from, to);
  if (to_dtype == DType::kBf16) return Convert<From, Bf16>(from, to);
  Convert<From, F16>(from, to);
}

// The same dtype is copied bit for bit.
void ConvertElement(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, SizeOf(to_dtype));
  } else if (from_dtype == DType::kF32) {
    ConvertFrom<float>(from, to, to_dtype);
  } else if (from_dtype == DType::kBf16) {
    ConvertFrom<Bf16>(from, to, to_dtype);
  } else {
    ConvertFrom<F16>(from, to, to_dtype);
  }
}

// Packs the rows of W that share one 16-column half of a block.
class HalfPacker {
 public:
  HalfPacker(const PackLinearArgs& args, const LinearLayout& layout, const LinearTable& table)
      : args_(args),
        layout_(layout),
        table_(table),
        element_bytes_(static_cast<int64_t>(SizeOf(args.shape.dtype))),
        source_element_bytes_(static_cast<int64_t>(SizeOf(args.source.dtype()))),
        source_row_bytes_(args.source.dim(1) * source_element_bytes_) {}

  // Of a gated weight the gate's halves are counted first, then those of the up projection.
  int64_t num_halves() const {
    return args_.shape.gated ? 2 * layout_.num_blocks()
                             : (args_.shape.n + kHalfColumns - 1) / kHalfColumns;
  }

  void Pack(int64_t half) const {
    int64_t block = half / 2, column = half % 2 * kHalfColumns;
    int64_t row_begin = half * kHalfColumns, row_limit = args_.shape.n;
    if (args_.shape.gated) {
      const bool up = half >= layout_.num_blocks();
      block = up ? half - layout_.num_blocks() : half;
      column = up ? kHalfColumns : 0;
      row_begin = block * kHalfColumns + (up ? args_.shape.n / 2 : 0);
      row_limit = up ? args_.shape.n : args_.shape.n / 2;
    }
    const int64_t row_end = std::min(row_begin + kHalfColumns, row_limit);
    const int64_t first = std::max(row_begin, args_.first_row);
    const int64_t last = std::min(row_end, args_.first_row + args_.source.dim(0));
    if (first >= last) return;
    const bool whole = last - first == kHalfColumns && args_.source.dtype() == args_.shape.dtype;
    for (int leaf = 0; leaf < args_.shape.num_leaves; ++leaf) {
      const int64_t k_begin = layout_.leaf_begin(leaf), num_k = layout_.leaf_end(leaf) - k_begin;
      for (int64_t k = 0; k < num_k; k += kTileK) {
        std::byte* tile = static_cast<std::byte*>(args_.out.raw()) + layout_.offset(block, leaf, k);
        const int64_t tile_k = std::min<int64_t>(kTileK, num_k - k);
        if (whole && tile_k == kTileK) {
          PackWholeTile(Source(first, k_begin + k), tile, column);
        } else {
          for (int64_t row = first; row < last; ++row) {
            PackRow(Source(row, k_begin + k), tile_k, tile, column + row - row_begin);
          }
        }
      }
    }
  }

 private:
  const std::byte* Source(int64_t row, int64_t k) const {
    return static_cast<const std::byte*>(args_.source.raw()) +
           (row - args_.first_row) * source_row_bytes_ +
           (args_.first_column + k) * source_element_bytes_;
  }

  // 16 rows by 32 k are one (16-bit types: pairs) or two (f32) transposes of 16 x 16 words.
  void PackWholeTile(const std::byte* source, std::byte* tile, int64_t column) const {
    if (element_bytes_ == 2) {
      table_.transpose(tile + column / kHalfColumns * 1024, 64, source, source_row_bytes_);
    } else {
      table_.transpose(tile + column * 4, 128, source, source_row_bytes_);
      table_.transpose(tile + column * 4 + 16 * 128, 128, source + 64, source_row_bytes_);
    }
  }

  void PackRow(const std::byte* source, int64_t num_k, std::byte* tile, int64_t column) const {
    for (int64_t k = 0; k < num_k; ++k) {
      const int64_t element = element_bytes_ == 4 ? k * kBlockColumns + column
                                                  : column / kHalfColumns * 512 + k / 2 * 32 +
                                                        column % kHalfColumns * 2 + k % 2;
      ConvertElement(source + k * source_element_bytes_, args_.source.dtype(),
                     tile + element * element_bytes_, args_.shape.dtype);
    }
  }

  const PackLinearArgs& args_;
  const LinearLayout& layout_;
  const LinearTable& table_;
  const int64_t element_bytes_;
  const int64_t source_element_bytes_;
  const int64_t source_row_bytes_;
};

}  // namespace

std::string_view CpuOps::packed_layout() const { return kLinearLayoutName; }

int64_t CpuOps::PackedBytes(const LinearShape& shape) const {
  return LinearLayout(shape).packed_bytes();
}

void CpuOps::DoPackLinear(const PackLinearArgs& args) {
  const LinearLayout layout(args.shape);
  const HalfPacker packer(args, layout, LinearTableOf(arithmetic_));
  pool_.ParallelFor(packer.num_halves(), [&](int64_t half, int) { packer.Pack(half); });
}

}  // namespace plumbline
