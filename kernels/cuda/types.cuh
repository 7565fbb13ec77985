// From tensors to what kernels take.
#pragma once

#include <cstdint>

#include "kernels/half.h"
#include "kernels/tensor.h"

namespace plumbline::cuda {

// function.operator()<T>() with T = float, Bf16 or F16.
template <typename Function>
void VisitFloat(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::kF32:
      return function.template operator()<float>();
    case DType::kBf16:
      return function.template operator()<Bf16>();
    case DType::kF16:
      return function.template operator()<F16>();
    default:
      PL_CHECK_MSG(false, "not a float tensor");
  }
}
// T = Bf16 or F16.
template <typename Function>
void VisitHalf(DType dtype, const Function& function) {
  PL_CHECK(dtype == DType::kBf16 || dtype == DType::kF16);
  return dtype == DType::kBf16 ? function.template operator()<Bf16>() : function.template operator()<F16>();
}

// The tensor's memory, null when it is left out.
template <typename T>
T* Data(const Tensor& tensor) {
  return tensor.empty() ? nullptr : tensor.as<T>();
}
template <typename T>
const T* Data(const ConstTensor& tensor) {
  return tensor.empty() ? nullptr : tensor.as<T>();
}

inline unsigned BlocksFor(int64_t count, int per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace plumbline::cuda
