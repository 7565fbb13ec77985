#include "kernels/device.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>

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

constexpr size_t kSmallBytes = 64 << 10, kPage = 4096, kHugePage = size_t{2} << 20;
constexpr size_t kReservedBytes = size_t{1} << 40;  // of addresses; memory is taken when it is touched

// Buffers lie side by side in one reservation of addresses, so that nearly all of them is on huge pages, whatever their
// sizes. Addresses are not used twice. Small buffers come from the heap.
class HostDevice final : public Device {
 public:
  ~HostDevice() override {
    if (reserved_ != nullptr) munmap(reserved_, kReservedBytes);
  }

  Buffer Allocate(size_t num_bytes) override {
    if (num_bytes == 0) return {};
    if (num_bytes < kSmallBytes) {
      void* data = std::aligned_alloc(64, (num_bytes + 63) / 64 * 64);
      if (data != nullptr) std::memset(data, 0, num_bytes);
      return {this, data, num_bytes};
    }
    const std::lock_guard lock(mutex_);
    if (!Reserve() || num_bytes > kReservedBytes - used_ - kPage) return {};
    std::byte* data = reserved_ + used_;
    used_ += RoundUp(num_bytes, kPage);
    return {this, data, num_bytes};
  }
  void Upload(Tensor to, const void* from) override {
    if (to.num_bytes() > 0) std::memcpy(to.raw(), from, to.num_bytes());
  }
  void Download(void* to, ConstTensor from) override {
    if (from.num_bytes() > 0) std::memcpy(to, from.raw(), from.num_bytes());
  }
  void Copy(Tensor to, ConstTensor from) override {
    PL_CHECK(to.num_bytes() == from.num_bytes());
    std::memmove(to.raw(), from.raw(), to.num_bytes());
  }
  void Zero(Tensor to) override { std::memset(to.raw(), 0, to.num_bytes()); }
  void Synchronize() override {}
  std::string Name() const override { return "cpu"; }

 private:
  static size_t RoundUp(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

  bool Reserve() {
    if (reserved_ != nullptr) return true;
    void* data = mmap(nullptr, kReservedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return false;
    madvise(data, kReservedBytes, MADV_HUGEPAGE);
    reserved_ = static_cast<std::byte*>(data);
    used_ = RoundUp(reinterpret_cast<uintptr_t>(data), kHugePage) - reinterpret_cast<uintptr_t>(data);
    return true;
  }
  void Free(void* data, size_t num_bytes) override {
    if (num_bytes < kSmallBytes) {
      std::free(data);
    } else {
      madvise(data, RoundUp(num_bytes, kPage), MADV_DONTNEED);
    }
  }

  std::mutex mutex_;
  std::byte* reserved_ = nullptr;
  size_t used_ = 0;
};

}  // namespace

std::unique_ptr<Device> MakeHostDevice() { return std::make_unique<HostDevice>(); }

}  // namespace plumbline
