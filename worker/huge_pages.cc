#include "worker/huge_pages.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace plumbline {
namespace {

constexpr uintptr_t kPage = 4096, kHugePage = uintptr_t{2} << 20;

// Of kernels newer than the headers we build with: madvise's MADV_COLLAPSE (Linux 6.1) and /proc/PID/pagemap's
// PAGEMAP_SCAN (6.7, Documentation/admin-guide/mm/pagemap.rst).
constexpr int kCollapse = 25;
constexpr uint64_t kPageIsHuge = 1 << 6;
struct PageRegion {
  uint64_t start, end, categories;
};
struct ScanArguments {
  uint64_t size, flags, start, end, walk_end, regions, num_regions, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr unsigned long kScan = _IOWR('f', 16, ScanArguments);

}  // namespace

void CollapseIntoHugePages(const void* begin, size_t num_bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / kHugePage * kHugePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + num_bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, kCollapse);
}

bool LiesOnHugePages(const void* begin, size_t num_bytes) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return false;
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + num_bytes + kPage - 1) / kPage * kPage;
  PageRegion regions[64];
  ScanArguments scan = {.size = sizeof(ScanArguments),
                        .end = last,
                        .regions = reinterpret_cast<uintptr_t>(regions),
                        .num_regions = 64,
                        .category_mask = kPageIsHuge,
                        .return_mask = kPageIsHuge};
  uint64_t huge_bytes = 0;
  for (uintptr_t next = first; next < last; next = scan.walk_end) {
    scan.start = next;
    const int count = ioctl(pagemap, kScan, &scan);
    if (count < 0 || scan.walk_end <= next) break;
    for (int i = 0; i < count; ++i) huge_bytes += regions[i].end - regions[i].start;
  }
  close(pagemap);
  return huge_bytes >= (last - first) / 10 * 9;
}

}  // namespace plumbline
