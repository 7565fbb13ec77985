// Context: what every layer of a stage works with, and the memory of one step, laid out when the stage is built.
#pragma once

#include "kernels/device.h"
#include "kernels/ops.h"

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
  DType act = DType::kBf16;  // activation dtype of the run
};

// What a mixer or an MLP begins with.
struct Activations {
  Tensor normed;  // [T, D] act, spread
  Scratch* scratch = nullptr;
};

}  // namespace plumbline
