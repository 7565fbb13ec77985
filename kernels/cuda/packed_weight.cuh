// How packed weights lie. Rows in tiles of 16, columns in steps of 32, leaf by leaf, a leaf padded with zeros to whole
// steps; the steps of a tile follow one another. A step of a 16-bit weight is two blocks of 16 columns, each as the 32
// lanes hold it as operand A of Mma16816: 16 bytes a lane, so a warp's load is 512 bytes in a row and needs no
// rearranging. A step of an f32 weight is [16][32]. Gated: a tile is 8 rows of the gate and the 8 rows of the up
// projection that belong to them.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace plumbline::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kStepColumns = 32;
inline constexpr int kStepVectors = kTileRows * kStepColumns * 2 / 16;  // 16-byte vectors of a step of a 16-bit tile

constexpr int64_t LeafColumns(const LinearShape& shape) { return (shape.k + shape.num_leaves - 1) / shape.num_leaves; }

struct PackedWeight {
  int64_t num_tiles, leaf_steps, num_steps;  // num_steps: of a tile

  static PackedWeight Of(const LinearShape& shape) {
    const int64_t rows = shape.gated ? shape.n / 2 : shape.n, tile_rows = shape.gated ? kTileRows / 2 : kTileRows;
    const int64_t leaf_steps = (LeafColumns(shape) + kStepColumns - 1) / kStepColumns;
    return {(rows + tile_rows - 1) / tile_rows, leaf_steps, leaf_steps * shape.num_leaves};
  }
  int64_t num_bytes(DType dtype) const {
    return num_tiles * num_steps * kTileRows * kStepColumns * static_cast<int64_t>(SizeOf(dtype));
  }
};

struct PackedPlace {
  int64_t row, column;  // of the weight as packed: tiles side by side, leaves padded
};
constexpr PackedPlace PlaceOf(const LinearShape& shape, int64_t row, int64_t column) {
  const int64_t half = shape.n / 2, leaf_k = LeafColumns(shape);
  const int64_t padded_leaf = (leaf_k + kStepColumns - 1) / kStepColumns * kStepColumns;
  if (shape.gated) row = row < half ? row / 8 * 16 + row % 8 : (row - half) / 8 * 16 + 8 + (row - half) % 8;
  return {row, column / leaf_k * padded_leaf + column % leaf_k};
}

// Element number of a place; size: bytes of an element.
constexpr int64_t PackedIndex(PackedPlace place, int64_t num_steps, int size) {
  const int64_t step = place.row / kTileRows * num_steps + place.column / kStepColumns;
  const int64_t r = place.row % kTileRows, c = place.column % kStepColumns;
  if (size == 4) return (step * kTileRows + r) * kStepColumns + c;
  const int64_t lane = r % 8 * 4 + c % 8 / 2, pair = r / 8 + c % 16 / 8 * 2;
  return ((step * 2 + c / 16) * 32 + lane) * 8 + pair * 2 + c % 2;
}

}  // namespace plumbline::cuda
