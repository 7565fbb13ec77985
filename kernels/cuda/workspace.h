// Workspace: device memory for the intermediates of one op. Grows, never shrinks: once the largest step has run, a step
// allocates nothing.
#pragma once

#include <cstdint>

#include "kernels/check.h"
#include "kernels/device.h"

namespace plumbline::cuda {

class Workspace {
 public:
  explicit Workspace(Device& device) : device_(device) {}

  // At least num_bytes, aligned to 256, undefined; valid until the next call. What an earlier call gave may be in use by
  // work that is enqueued: it is freed once that is done.
  void* Take(size_t num_bytes) {
    if (num_bytes > buffer_.num_bytes()) {
      device_.Synchronize();
      buffer_ = Buffer();
      buffer_ = device_.Allocate(num_bytes + num_bytes / 4);
      PL_CHECK_MSG(buffer_.data() != nullptr, "no device memory for the intermediates of an op");
    }
    return buffer_.data();
  }

 private:
  Device& device_;
  Buffer buffer_;
};

}  // namespace plumbline::cuda
