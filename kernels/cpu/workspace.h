// Workspace: memory an op needs beside its arguments, kept from call to call.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "kernels/check.h"

namespace plumbline {

// Grows to the largest request and stays: after the largest step has run once, nothing is allocated
// any more.
class Workspace {
 public:
  // At least num_elements of T, aligned to 64 bytes, contents unspecified. Valid until the next
  // Get.
  template <typename T>
  T* Get(size_t num_elements) {
    if (num_elements * sizeof(T) > num_bytes_) {
      // Large ones on huge pages: kernels walk them in strides.
      const size_t alignment = num_elements * sizeof(T) < kHugePage / 16 ? 64 : kHugePage;
      num_bytes_ = (num_elements * sizeof(T) + alignment - 1) / alignment * alignment;
      data_.reset();
      data_.reset(std::aligned_alloc(alignment, num_bytes_));
      PL_CHECK_MSG(data_ != nullptr, "no memory for an op's workspace");
      if (alignment == kHugePage) madvise(data_.get(), num_bytes_, MADV_HUGEPAGE);
    }
    return static_cast<T*>(data_.get());
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;

  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
  size_t num_bytes_ = 0;
};

}  // namespace plumbline
