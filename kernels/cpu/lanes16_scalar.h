// Lanes16 in sixteen floats, for any processor.
#pragma once

#include <cstring>

#include "kernels/cpu/lanes16.h"
#include "kernels/cpu/simd_scalar.h"

namespace plumbline {
namespace {

using ScalarLanes = Lanes16<Scalar>;

template <>
inline void ScalarLanes::Transpose(ScalarLanes::F rows[16]) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      uint32_t a, b;  // not as floats: a lane may hold a pair of bf16
      std::memcpy(&a, &rows[i].part[j], 4);
      std::memcpy(&b, &rows[j].part[i], 4);
      std::memcpy(&rows[i].part[j], &b, 4);
      std::memcpy(&rows[j].part[i], &a, 4);
    }
  }
}

}  // namespace
}  // namespace plumbline
