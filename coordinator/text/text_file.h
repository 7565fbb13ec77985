// Reading a whole file of bounded size.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace plumbline {

// NOT_FOUND when there is no such file, RESOURCE_EXHAUSTED when it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes);

}  // namespace plumbline
