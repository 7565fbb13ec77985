// CudaDevice: memory and the one stream of a GPU.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "kernels/device.h"

namespace plumbline {

class CudaDevice final : public Device {
 public:
  // REQUIRES: index is a device of this host, and usable.
  explicit CudaDevice(int index);
  ~CudaDevice() override;

  Buffer Allocate(size_t num_bytes) override;
  void Upload(Tensor to, const void* from) override;
  void Download(void* to, ConstTensor from) override;
  void Copy(Tensor to, ConstTensor from) override;
  void Zero(Tensor to) override;
  void Synchronize() override;
  std::string Name() const override { return name_; }

  cudaStream_t stream() const { return stream_; }
  int num_multiprocessors() const { return num_multiprocessors_; }

 private:
  // Pinned host memory through which uploads go, so that they need not wait: a ring, halves of which are used again once the
  // copies out of them are done.
  static constexpr size_t kStagingBytes = size_t{8} << 20;

  void Free(void* data, size_t num_bytes) override;
  std::byte* TakeStaging(size_t num_bytes);

  int index_;
  std::string name_;
  int num_multiprocessors_ = 0;
  cudaStream_t stream_ = nullptr;
  std::byte* staging_ = nullptr;
  int half_ = 0;          // in use
  size_t half_used_ = 0;  // bytes of it
  cudaEvent_t half_done_[2] = {};
};

}  // namespace plumbline
