#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"

namespace plumbline {
namespace {

void Check(cudaError_t error) { PL_CHECK_MSG(error == cudaSuccess, cudaGetErrorString(error)); }

}  // namespace

CudaDevice::CudaDevice(int index) : index_(index) {
  Check(cudaSetDevice(index));
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, index));
  name_ = properties.name;
  num_multiprocessors_ = properties.multiProcessorCount;
  Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  Check(cudaMallocHost(reinterpret_cast<void**>(&staging_), kStagingBytes));
  for (cudaEvent_t& event : half_done_) {
    Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    Check(cudaEventRecord(event, stream_));
  }
}

CudaDevice::~CudaDevice() {
  cudaStreamSynchronize(stream_);
  for (cudaEvent_t event : half_done_) cudaEventDestroy(event);
  cudaFreeHost(staging_);
  cudaStreamDestroy(stream_);
}

Buffer CudaDevice::Allocate(size_t num_bytes) {
  if (num_bytes == 0) return Buffer(this, nullptr, 0);
  void* data = nullptr;
  if (cudaMalloc(&data, num_bytes) != cudaSuccess) {
    cudaGetLastError();  // "out of memory" is the caller's to report
    return Buffer(this, nullptr, num_bytes);
  }
  Check(cudaMemsetAsync(data, 0, num_bytes, stream_));
  return Buffer(this, data, num_bytes);
}

void CudaDevice::Free(void* data, size_t) {
  if (data != nullptr) cudaFree(data);
}

// At most half of the ring.
std::byte* CudaDevice::TakeStaging(size_t num_bytes) {
  constexpr size_t kHalf = kStagingBytes / 2;
  const size_t padded = (num_bytes + 63) / 64 * 64;
  PL_CHECK(padded <= kHalf);
  if (half_used_ + padded > kHalf) {
    Check(cudaEventRecord(half_done_[half_], stream_));
    half_ = 1 - half_;
    half_used_ = 0;
    Check(cudaEventSynchronize(half_done_[half_]));
  }
  std::byte* taken = staging_ + static_cast<size_t>(half_) * kHalf + half_used_;
  half_used_ += padded;
  return taken;
}

void CudaDevice::Upload(Tensor to, const void* from) {
  const size_t num_bytes = to.num_bytes();
  for (size_t at = 0; at < num_bytes;) {
    const size_t piece = std::min(num_bytes - at, kStagingBytes / 4);
    std::byte* staging = TakeStaging(piece);
    std::memcpy(staging, static_cast<const std::byte*>(from) + at, piece);
    Check(cudaMemcpyAsync(static_cast<std::byte*>(to.raw()) + at, staging, piece, cudaMemcpyHostToDevice, stream_));
    at += piece;
  }
}

void CudaDevice::Download(void* to, ConstTensor from) {
  Check(cudaMemcpyAsync(to, from.raw(), from.num_bytes(), cudaMemcpyDeviceToHost, stream_));
  Synchronize();
}

void CudaDevice::Copy(Tensor to, ConstTensor from) {
  PL_CHECK(to.dtype() == from.dtype() && to.num_elements() == from.num_elements());
  Check(cudaMemcpyAsync(to.raw(), from.raw(), from.num_bytes(), cudaMemcpyDeviceToDevice, stream_));
}

void CudaDevice::Zero(Tensor to) { Check(cudaMemsetAsync(to.raw(), 0, to.num_bytes(), stream_)); }

void CudaDevice::Synchronize() { Check(cudaStreamSynchronize(stream_)); }

}  // namespace plumbline
