// What the tests of communicators share.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "kernels/tensor.h"

namespace plumbline {

using Bytes = std::vector<uint8_t>;

inline constexpr absl::Duration kPatience = absl::Seconds(30);  // a deadline that no test should reach
inline constexpr absl::Duration kPrompt = absl::Seconds(2);     // "at once" on a machine that is busy with other things

inline Tensor View(Bytes& bytes) { return Tensor(bytes.data(), DType::kU8, {static_cast<int64_t>(bytes.size())}); }

}  // namespace plumbline
