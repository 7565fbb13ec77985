// Panel: rows of activations in the form in which a linear's kernel reads them.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/linear_layout.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/workspace.h"

namespace plumbline {

// Every leaf is padded with zeros as in the weight.
struct Panel {
  const std::byte* data = nullptr;
  int64_t num_rows = 0;
  int64_t row_bytes = 0;  // x itself, for a kernel that reads rows; 0: packed
};

inline int64_t PanelBytes(const PanelFormat& format, const LinearLayout& layout, int64_t num_rows) {
  return num_rows * layout.padded_k() * static_cast<int64_t>(SizeOf(format.dtype));
}

// k of a packed chunk: even parts of a leaf, or all of it where that is not much more than format.chunk_k.
int64_t ChunkK(const PanelFormat& format, const LinearLayout& layout);

// A packed panel of so many bytes stays in a core's second-level cache while the weight passes.
inline constexpr int64_t kMaxPackedBytes = 1280 << 10;

struct PackPanelArgs {
  std::byte* out;          // [PanelBytes]
  ConstTensor x;           // [*, k] bf16 | f16 | f32
  const int32_t* row_ids;  // [num_rows] rows of x to take, or null: rows [0, num_rows)
  int64_t num_rows;
};
void PackPanel(ThreadPool& pool, const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args);
// The same on the calling thread.
void PackPanel(const PanelFormat& format, const LinearLayout& layout, const PackPanelArgs& args);

// x as a kernel wants it: x itself where it already lies so, or where a packed copy would not stay in the cache; else
// packed into the workspace.
Panel PreparePanel(ThreadPool& pool, Workspace& workspace, const PanelFormat& format, const LinearLayout& layout,
                   ConstTensor x);

}  // namespace plumbline
