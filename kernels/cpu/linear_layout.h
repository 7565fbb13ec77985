// LinearLayout: where a weight's elements lie in its packed form.
//
// A block holds 32 columns of W^T (rows of W): of a gated weight 16 gate and the 16 up rows that
// belong to them. The block is [leaf][padded leaf k / 32] tiles, each leaf padded with zeros to a
// multiple of 32:
//   16-bit types: [2][16][32]: 16 columns each, rows of 64 bytes are one pair of k: (k, c), (k + 1,
//   c), (k, c + 1), ... f32:          [32][32]:    one row of 128 bytes per k
// One block is one contiguous stream in the order in which a product reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/ops.h"

namespace plumbline {

// Weights packed by one build are read by others (worker/weight_cache.h): a change of anything here, or of what DoPackLinear
// writes, is a new name.
inline constexpr std::string_view kLinearLayoutName = "cpu-tiles-1";
inline constexpr int kBlockColumns = 32;
inline constexpr int kHalfColumns = 16;
inline constexpr int kTileK = 32;

class LinearLayout {
 public:
  explicit LinearLayout(const LinearShape& shape)
      : shape_(shape), padded_leaf_k_((shape.leaf_k() + kTileK - 1) / kTileK * kTileK) {}

  const LinearShape& shape() const { return shape_; }
  // Output columns of a linear, or of a gated linear after the gate.
  int64_t num_outputs() const { return shape_.gated ? shape_.n / 2 : shape_.n; }
  int outputs_per_block() const { return shape_.gated ? kHalfColumns : kBlockColumns; }
  int64_t num_blocks() const {
    return (num_outputs() + outputs_per_block() - 1) / outputs_per_block();
  }

  int64_t padded_leaf_k() const { return padded_leaf_k_; }
  int64_t padded_k() const { return padded_leaf_k_ * shape_.num_leaves; }
  // Columns of x that belong to a leaf; the last leaves may be short or empty.
  int64_t leaf_begin(int leaf) const { return Clamp(leaf * shape_.leaf_k()); }
  int64_t leaf_end(int leaf) const { return Clamp((leaf + 1) * shape_.leaf_k()); }

  // In bytes. k counts within the leaf and is a multiple of kTileK.
  int64_t block_bytes() const {
    return padded_k() * kBlockColumns * static_cast<int64_t>(SizeOf(shape_.dtype));
  }
  int64_t offset(int64_t block, int leaf, int64_t k) const {
    return block * block_bytes() +
           (leaf * padded_leaf_k_ + k) * kBlockColumns * static_cast<int64_t>(SizeOf(shape_.dtype));
  }
  int64_t packed_bytes() const { return num_blocks() * block_bytes(); }

 private:
  int64_t Clamp(int64_t k) const { return k < shape_.k ? k : shape_.k; }

  LinearShape shape_;
  int64_t padded_leaf_k_;
};

}  // namespace plumbline
