#include "worker/model/context.h"

namespace plumbline {

int64_t Scratch::BytesOf(DType dtype, int64_t num_elements) {
  return (num_elements * static_cast<int64_t>(SizeOf(dtype)) + 63) / 64 * 64;
}

Tensor Scratch::Take(DType dtype, Shape shape) {
  Tensor tensor(static_cast<std::byte*>(buffer_.data()) + used_, dtype, shape);
  used_ += BytesOf(dtype, shape.num_elements());
  PL_CHECK(used_ <= static_cast<int64_t>(buffer_.num_bytes()));
  return tensor;
}

}  // namespace plumbline
