// Tensor, ConstTensor: non-owning views of row-major device memory, at most four dimensions; dense, but for the rows (the
// outermost dimension), which may lie further apart where a contract says so.
// The direction of data is in the type: an op writes a Tensor and reads a ConstTensor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/check.h"

namespace plumbline {

enum class DType : uint8_t { kF32, kBf16, kF16, kI32, kI64, kU8 };

constexpr size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBf16:
    case DType::kF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kU8:
      return 1;
  }
  return 0;
}

const char* NameOf(DType dtype);  // "f32", "bf16", ...

struct Shape {
  std::array<int64_t, 4> dims = {1, 1, 1, 1};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    PL_CHECK(sizes.size() <= 4);
    for (int64_t size : sizes) dims[rank++] = size;
  }
  int64_t operator[](int i) const { return dims[i]; }
  int64_t num_elements() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
  bool operator==(const Shape& other) const = default;
};

template <typename Byte>  // std::byte or const std::byte
class BasicTensor {
 public:
  using Void = std::conditional_t<std::is_const_v<Byte>, const void, void>;
  template <typename T>
  using Element = std::conditional_t<std::is_const_v<Byte>, const T, T>;

  BasicTensor() = default;
  BasicTensor(Void* data, DType dtype, Shape shape)
      : BasicTensor(data, dtype, shape, shape.dims[1] * shape.dims[2] * shape.dims[3]) {}
  BasicTensor(Void* data, DType dtype, Shape shape, int64_t row_stride)
      : data_(static_cast<Byte*>(data)), dtype_(dtype), shape_(shape), row_stride_(row_stride) {}
  // A Tensor is a ConstTensor; not the other way round.
  operator BasicTensor<const std::byte>() const { return {data_, dtype_, shape_, row_stride_}; }

  bool empty() const { return data_ == nullptr; }  // an optional argument that was left out
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t num_elements() const { return shape_.num_elements(); }
  size_t num_bytes() const {
    PL_CHECK(is_dense());
    return num_elements() * SizeOf(dtype_);
  }
  Void* raw() const { return data_; }
  // An element of a two-dimensional tensor.
  Void* At(int64_t row, int64_t column) const {
    return data_ + (row * row_stride_ + column) * static_cast<int64_t>(SizeOf(dtype_));
  }
  // Elements from one row to the next.
  int64_t row_stride() const { return row_stride_; }
  bool is_dense() const { return row_stride_ == shape_.dims[1] * shape_.dims[2] * shape_.dims[3]; }

  template <typename T>
  Element<T>* as() const {
    PL_CHECK(sizeof(T) == SizeOf(dtype_));
    return reinterpret_cast<Element<T>*>(data_);
  }

  // Rows [first, first + count) of the outermost dimension.
  BasicTensor Rows(int64_t first, int64_t count) const {
    PL_CHECK(first >= 0 && count >= 0 && first + count <= shape_[0]);
    Shape shape = shape_;
    shape.dims[0] = count;
    return {At(first, 0), dtype_, shape, row_stride_};
  }
  // The same bytes under another shape with as many elements.
  BasicTensor Reshape(Shape shape) const {
    PL_CHECK(is_dense() && shape.num_elements() == num_elements());
    return {data_, dtype_, shape};
  }

 private:
  Byte* data_ = nullptr;
  DType dtype_ = DType::kF32;
  Shape shape_;
  int64_t row_stride_ = 1;
};

// The row stride of activations that are read a few columns of many rows at a time: an odd number of cache lines, as rows a
// power of two apart would all want the same few places of a cache.
constexpr int64_t SpreadStride(DType dtype, int64_t columns) {
  constexpr int64_t kLine = 64;
  const int64_t size = static_cast<int64_t>(SizeOf(dtype));
  return ((columns * size + kLine - 1) / kLine | 1) * kLine / size;
}

using Tensor = BasicTensor<std::byte>;
using ConstTensor = BasicTensor<const std::byte>;

}  // namespace plumbline
