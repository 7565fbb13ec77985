// Context: what every layer of a stage works with, and the memory of one step, laid out when the stage is built.
#pragma once

#include "kernels/device.h"
#include "kernels/ops.h"
#include "parallel/reduce.h"

namespace plumbline {

// Bump allocator over one buffer for intermediates that live inside one layer.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(Buffer buffer) : buffer_(std::move(buffer)) {}

  void Reset() { used_ = 0; }
  // 64-byte aligned. REQUIRES: the buffer was made large enough for what a layer takes between resets.
  Tensor Take(DType dtype, Shape shape);
  // [rows, columns], rows SpreadStride apart: what a product reads.
  Tensor TakeSpread(DType dtype, int64_t rows, int64_t columns);

  // Bytes that Take and TakeSpread use.
  static int64_t BytesOf(DType dtype, int64_t num_elements);
  static int64_t SpreadBytesOf(DType dtype, int64_t rows, int64_t columns);

 private:
  std::byte* TakeBytes(int64_t num_bytes);

  Buffer buffer_;
  int64_t used_ = 0;
};

struct Context {
  Device* device = nullptr;
  Ops* ops = nullptr;
  PartialExchange* exchange = nullptr;  // over the tensor-parallel group
  DType act = DType::kBf16;             // activation dtype of the run
};

// Of one step; a layer reads normed, and leaves its contribution to h in partials for the next norm to add.
struct Activations {
  Tensor h;              // [T, D] f32: the residual stream
  Tensor normed;         // [T, D] act, spread
  ConstTensor partials;  // [L, T, D] f32: not yet added to h; empty at a later stage's start
  Scratch* scratch = nullptr;
};

}  // namespace plumbline
