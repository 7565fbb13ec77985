#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "kernels/check.h"
#include "tests/fuzz/targets.h"
#include "worker/safetensors.h"

namespace plumbline {

void FuzzSafetensors(std::string_view file) {
  const int memory = memfd_create("safetensors", MFD_CLOEXEC);
  PL_CHECK(memory >= 0 &&
           write(memory, file.data(), file.size()) == static_cast<ssize_t>(file.size()));
  const auto opened = SafetensorsFile::Open("/proc/self/fd/" + std::to_string(memory));
  close(memory);
  if (!opened.ok()) return;
  // The tensors cover what is behind the header once and without gaps.
  uint64_t end = 0;
  for (const SafetensorsEntry& entry : (*opened)->entries()) {
    PL_CHECK(entry.begin == end && entry.end >= entry.begin && entry.end <= file.size());
    end = entry.end;
    const std::byte* data = (*opened)->Data(entry);
    for (uint64_t i = 0; i < entry.end - entry.begin; ++i) {
      PL_CHECK(data[i] ==
               static_cast<std::byte>(
                   file[file.size() - ((*opened)->entries().back().end - entry.begin) + i]));
    }
    PL_CHECK((*opened)->Find(entry.name) == &entry);
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kU8}) {
      const auto tensor = (*opened)->Read(entry.name, dtype);
      PL_CHECK(!tensor.ok() || tensor->num_elements() * SizeOf(dtype) == entry.end - entry.begin);
    }
  }
}

}  // namespace plumbline
