// Device: memory of one compute device and its one stream of work. Ops and copies are enqueued in call order;
// Synchronize waits for all of them. One thread drives a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "kernels/tensor.h"

namespace plumbline {

class Device;

// Owns device memory; movable, freed with the handle.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device* device, void* data, size_t num_bytes)
      : device_(device), data_(data), num_bytes_(num_bytes) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    return *this;
  }
  ~Buffer();

  void* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }
  // REQUIRES: the shape fits the buffer.
  Tensor View(DType dtype, Shape shape) const;

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t num_bytes_ = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  // Zero-filled, aligned to 64 bytes at least; data() is null when there is no memory left (num_bytes > 0).
  virtual Buffer Allocate(size_t num_bytes) = 0;
  virtual void Upload(Tensor to, const void* from) = 0;         // host -> device
  virtual void Download(void* to, ConstTensor from) = 0;        // device -> host; waits for it
  virtual void Copy(Tensor to, ConstTensor from) = 0;           // same dtype and element count
  virtual void Zero(Tensor to) = 0;
  virtual void Synchronize() = 0;
  virtual std::string Name() const = 0;                         // "cpu", "NVIDIA H200", ...

 private:
  friend class Buffer;
  virtual void Free(void* data, size_t num_bytes) = 0;
};

// Host memory: what the reference and the CPU backend run on.
std::unique_ptr<Device> MakeHostDevice();

}  // namespace plumbline
