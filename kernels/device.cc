#include "kernels/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

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
constexpr size_t kRegionBytes = size_t{1} << 30;  // of addresses; memory is taken when it is touched

size_t RoundUp(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Buffers lie side by side in regions of addresses, so that nearly all of them is on huge pages, whatever their sizes.
// Addresses are not used twice. Small buffers come from the heap.
class HostDevice final : public Device {
 public:
  ~HostDevice() override {
    for (const Region& region : regions_) munmap(region.begin, region.num_bytes);
  }

  Buffer Allocate(size_t num_bytes) override {
    if (num_bytes == 0) return {};
    if (num_bytes < kSmallBytes) {
      void* data = std::aligned_alloc(64, RoundUp(num_bytes, 64));
      if (data != nullptr) std::memset(data, 0, num_bytes);
      return {this, data, num_bytes};
    }
    const std::lock_guard lock(mutex_);
    const size_t size = RoundUp(num_bytes, kPage);
    if (regions_.empty() || size > regions_.back().num_bytes - regions_.back().used) {
      if (!AddRegion(std::max(size + kHugePage, kRegionBytes))) return {};
    }
    Region& region = regions_.back();
    std::byte* data = region.begin + region.used;
    region.used += size;
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
  struct Region {
    std::byte* begin;
    size_t num_bytes, used;
  };

  bool AddRegion(size_t num_bytes) {
    void* data = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return false;
    madvise(data, num_bytes, MADV_HUGEPAGE);
    const auto address = reinterpret_cast<uintptr_t>(data);
    regions_.push_back({static_cast<std::byte*>(data), num_bytes, RoundUp(address, kHugePage) - address});
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
  std::vector<Region> regions_;
};

}  // namespace

std::unique_ptr<Device> MakeHostDevice() { return std::make_unique<HostDevice>(); }

}  // namespace plumbline
