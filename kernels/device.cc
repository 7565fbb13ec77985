#include "kernels/device.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace plumbline {

const char* NameOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBf16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
  }
  return "?";
}

Buffer::~Buffer() {
  if (data_ != nullptr) device_->Free(data_, num_bytes_);
}

Tensor Buffer::View(DType dtype, Shape shape) const {
  Tensor view(data_, dtype, shape);
  PL_CHECK(view.num_bytes() <= num_bytes_);
  return view;
}

namespace {

constexpr size_t kMapBytes = size_t{256} << 10;

// Large buffers are anonymous maps: zero-filled by the kernel, huge pages where the kernel grants them.
class HostDevice final : public Device {
 public:
  Buffer Allocate(size_t num_bytes) override {
    if (num_bytes == 0) return {};
    if (num_bytes < kMapBytes) {
      void* data = std::aligned_alloc(64, (num_bytes + 63) / 64 * 64);
      if (data != nullptr) std::memset(data, 0, num_bytes);
      return {this, data, num_bytes};
    }
    void* data = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return {};
    if (num_bytes >= size_t{2} << 20) madvise(data, num_bytes, MADV_HUGEPAGE);
    return {this, data, num_bytes};
  }
  void Upload(Tensor to, const void* from) override { std::memcpy(to.raw(), from, to.num_bytes()); }
  void Download(void* to, ConstTensor from) override {
    std::memcpy(to, from.raw(), from.num_bytes());
  }
  void Copy(Tensor to, ConstTensor from) override {
    PL_CHECK(to.num_bytes() == from.num_bytes());
    std::memmove(to.raw(), from.raw(), to.num_bytes());
  }
  void Zero(Tensor to) override { std::memset(to.raw(), 0, to.num_bytes()); }
  void Synchronize() override {}
  std::string Name() const override { return "cpu"; }

 private:
  void Free(void* data, size_t num_bytes) override {
    if (num_bytes < kMapBytes) {
      std::free(data);
    } else {
      munmap(data, num_bytes);
    }
  }
};

}  // namespace

std::unique_ptr<Device> MakeHostDevice() { return std::make_unique<HostDevice>(); }

}  // namespace plumbline
