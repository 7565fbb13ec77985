#include "kernels/cpu/activation_panel.h"

#include <algorithm>
#include <cstring>

#include "kernels/half.h"

namespace plumbline {

int64_t ChunkK(const PanelFormat& format, const LinearLayout& layout) {
  const int64_t leaf_k = layout.padded_leaf_k();
  if (leaf_k <= format.chunk_k * 3 / 2) return leaf_k;
  const int64_t num_chunks = (leaf_k + format.chunk_k - 1) / format.chunk_k;
  return (leaf_k / kTileK + num_chunks - 1) / num_chunks * kTileK;
}

namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kMinParallelPanelBytes = 64 << 10;  // below, waking the pool costs more than the copy

// Packs num_k values of one row, padded with zeros to padded_k, into k groups that lie `stride`
// elements apart.
template <int kGroup>
void PackBf16Row(const uint16_t* x, int64_t num_k, int64_t padded_k, uint16_t* out,
                 int64_t stride) {
  int64_t k = 0;
  for (; k + kGroup <= num_k; k += kGroup, out += stride)
    std::memcpy(out, x + k, kGroup * sizeof *x);
  for (; k < padded_k; k += kGroup, out += stride) {
    for (int i = 0; i < kGroup; ++i) out[i] = k + i < num_k ? x[k + i] : 0;
  }
}

template <typename T>
void PackF32Row(const T* x, int64_t num_k, int64_t padded_k, float* out, int64_t stride) {
  for (int64_t k = 0; k < num_k; ++k) out[k * stride] = ToFloat(x[k]);
  for (int64_t k = num_k; k < padded_k; ++k) out[k * stride] = 0;
}

struct RowPiece {
  int64_t element;  // of x
  int64_t num_k, padded_k;
  int64_t out, stride;  // elements of the panel
};

void PackRowPiece(const PanelFormat& format, const PackPanelArgs& args, const RowPiece& piece) {
  if (format.dtype == DType::kBf16) {
    const uint16_t* x = args.x.as<uint16_t>() + piece.element;
    uint16_t* out = reinterpret_cast<uint16_t*>(args.out) + piece.out;
    PL_CHECK(format.k_group == kTileK || format.k_group == 2);
    if (format.k_group == 2)
      return PackBf16Row<2>(x, piece.num_k, piece.padded_k, out, piece.stride);
    return PackBf16Row<kTileK>(x, piece.num_k, piece.padded_k, out, piece.stride);
  }
  float* out = reinterpret_cast<float*>(args.out) + piece.out;
  if (args.x.dtype() == DType::kBf16) {
    PackF32Row(args.x.as<Bf16>() + piece.element, piece.num_k, piece.padded_k, out, piece.stride);
  } else if (args.x.dtype() == DType::kF16) {
    PackF32Row(args.x.as<F16>() + piece.element, piece.num_k, piece.padded_k, out, piece.stride);
  } else {
    PackF32Row(args.x.as<float>() + piece.element, piece.num_k, piece.padded_k, out, piece.stride);
  }
}

// One leaf of one row tile.
void PackPanelPart(const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args,
                   int64_t tile, int leaf) {
  const int64_t first_row = tile * format.tile_rows;
  const int64_t rows = std::min<int64_t>(format.tile_rows, args.num_rows - first_row);
  const int64_t begin = layout.leaf_begin(leaf), leaf_k = layout.leaf_end(leaf) - begin;
  const int64_t max_chunk_k = ChunkK(format, layout);
  for (int64_t k = 0; k < layout.padded_leaf_k(); k += max_chunk_k) {
    const int64_t chunk_k = std::min(max_chunk_k, layout.padded_leaf_k() - k);
    const int64_t out = (leaf * layout.padded_leaf_k() + k) * args.num_rows + first_row * chunk_k;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = args.row_ids ? args.row_ids[first_row + r] : first_row + r;
      PackRowPiece(format, args,
                   {.element = row * args.x.row_stride() + begin + k,
                    .num_k = std::clamp<int64_t>(leaf_k - k, 0, chunk_k),
                    .padded_k = chunk_k,
                    .out = out + r * format.k_group,
                    .stride = rows * format.k_group});
    }
  }
}

int64_t NumParts(const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args) {
  return (args.num_rows + format.tile_rows - 1) / format.tile_rows * layout.shape().num_leaves;
}

}  // namespace

void PackPanel(const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args) {
  const int leaves = layout.shape().num_leaves;
  for (int64_t part = 0; part < NumParts(format, layout, args); ++part) {
    PackPanelPart(format, layout, args, part / leaves, static_cast<int>(part % leaves));
  }
}

void PackPanel(ThreadPool& pool, const PanelFormat& format, const LinearLayout& layout,
               const PackPanelArgs& args) {
  if (PanelBytes(format, layout, args.num_rows) < kMinParallelPanelBytes)
    return PackPanel(format, layout, args);
  const int leaves = layout.shape().num_leaves;
  pool.ParallelFor(NumParts(format, layout, args), [&](int64_t part, int) {
    PackPanelPart(format, layout, args, part / leaves, static_cast<int>(part % leaves));
  });
}

Panel PreparePanel(ThreadPool& pool, Workspace& workspace, const PanelFormat& format,
                   const LinearLayout& layout, ConstTensor x) {
  const int64_t num_rows = x.dim(0), row_bytes = x.row_stride() * static_cast<int64_t>(SizeOf(x.dtype()));
  if (x.dtype() == format.dtype && layout.padded_k() == layout.shape().k) {
    const auto* data = static_cast<const std::byte*>(x.raw());
    if (num_rows == 1) return {data, num_rows};
    const int64_t share = (num_rows + pool.num_threads() - 1) / pool.num_threads();
    const bool is_spread = row_bytes / kCacheLine % 2 == 1;
    if (format.reads_rows && (is_spread || share * row_bytes > kMaxPackedBytes)) return {data, num_rows, row_bytes};
  }
  std::byte* data = workspace.Get<std::byte>(PanelBytes(format, layout, num_rows));
  PackPanel(pool, format, layout, {.out = data, .x = x, .row_ids = nullptr, .num_rows = num_rows});
  return {data, num_rows};
}

}  // namespace plumbline
