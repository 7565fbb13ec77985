#include "worker/build_id.h"

#include <elf.h>
#include <link.h>

#include <cstring>
#include <string_view>

#include "absl/strings/escaping.h"

namespace plumbline {
namespace {

// Notes lie one after the other: header, name, description, the latter two padded to 4 bytes.
std::string FindBuildId(const char* notes, size_t num_bytes) {
  const auto padded = [](size_t size) { return (size + 3) / 4 * 4; };
  while (num_bytes >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) header;
    std::memcpy(&header, notes, sizeof(header));
    const size_t total = sizeof(header) + padded(header.n_namesz) + padded(header.n_descsz);
    if (total > num_bytes) break;
    const std::string_view name(notes + sizeof(header), header.n_namesz);
    if (header.n_type == NT_GNU_BUILD_ID && name == std::string_view("GNU\0", 4)) {
      return absl::BytesToHexString(
          absl::string_view(notes + sizeof(header) + padded(header.n_namesz), header.n_descsz));
    }
    notes += total;
    num_bytes -= total;
  }
  return "";
}

}  // namespace

std::string BuildId() {
  std::string id;
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void* result) {
        for (int i = 0; i < object->dlpi_phnum; ++i) {
          const ElfW(Phdr)& segment = object->dlpi_phdr[i];
          if (segment.p_type != PT_NOTE) continue;
          std::string found = FindBuildId(
              reinterpret_cast<const char*>(object->dlpi_addr + segment.p_vaddr), segment.p_memsz);
          if (!found.empty()) *static_cast<std::string*>(result) = std::move(found);
        }
        return 1;  // the first object is the executable
      },
      &id);
  return id.empty() ? "unknown" : id;
}

}  // namespace plumbline
