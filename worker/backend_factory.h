// The one place in the worker that names concrete backends.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace plumbline {

struct BackendChoice {
  std::string device = "cpu";  // or "cuda"
  int device_index = 0;        // of this host's GPUs
  std::string arithmetic;      // on CPUs: of CpuArithmetics(), or "reference-1"; empty: the fastest
  int num_threads = 1;
};

// INVALID_ARGUMENT names what this machine can do instead, FAILED_PRECONDITION why a GPU cannot be used.
absl::StatusOr<Backend> MakeBackend(const BackendChoice& choice);

}  // namespace plumbline
