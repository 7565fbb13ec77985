// Workspace: memory an op needs beside its arguments, kept from call to call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "kernels/check.h"

namespace plumbline {

// Grows to the largest request and stays: after the largest step has run once, nothing is allocated any more.
class Workspace {
 public:
  // At least num_elements of T, aligned to 64 bytes, contents unspecified. Valid until the next Get.
  template <typename T>
  T* Get(size_t num_elements) {
    const size_t num_bytes = (num_elements * sizeof(T) + 63) / 64 * 64;
    if (num_bytes > num_bytes_) {
      data_.reset();
      data_.reset(std::aligned_alloc(64, num_bytes));
      PL_CHECK_MSG(data_ != nullptr, "no memory for an op's workspace");
      num_bytes_ = num_bytes;
    }
    return static_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
  size_t num_bytes_ = 0;
};

}  // namespace plumbline
