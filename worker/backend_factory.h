// The one place in the worker that names concrete backends.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace plumbline {

struct BackendChoice {
  std::string device = "cpu";  // "cpu"
  std::string arithmetic;      // of CpuArithmetics(), or "reference-1"; empty: the fastest
  int num_threads = 1;
};

// INVALID_ARGUMENT names what this machine can do instead.
absl::StatusOr<Backend> MakeBackend(const BackendChoice& choice);

}  // namespace plumbline
