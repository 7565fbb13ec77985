#include "worker/model/context.h"

namespace plumbline {

int64_t Scratch::BytesOf(DType dtype, int64_t num_elements) {
  return (num_elements * static_cast<int64_t>(SizeOf(dtype)) + 63) / 64 * 64;
}

int64_t Scratch::SpreadBytesOf(DType dtype, int64_t rows, int64_t columns) {
  return BytesOf(dtype, rows * SpreadStride(dtype, columns));
}

std::byte* Scratch::TakeBytes(int64_t num_bytes) {
  std::byte* bytes = static_cast<std::byte*>(buffer_.data()) + used_;
  used_ += num_bytes;
  PL_CHECK(used_ <= static_cast<int64_t>(buffer_.num_bytes()));
  return bytes;
}

Tensor Scratch::Take(DType dtype, Shape shape) {
  return {TakeBytes(BytesOf(dtype, shape.num_elements())), dtype, shape};
}

Tensor Scratch::TakeSpread(DType dtype, int64_t rows, int64_t columns) {
  return {TakeBytes(SpreadBytesOf(dtype, rows, columns)), dtype, {rows, columns}, SpreadStride(dtype, columns)};
}

}  // namespace plumbline
