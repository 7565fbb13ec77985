#include "coordinator/text/text_file.h"

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace plumbline {

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  uintmax_t num_bytes = std::filesystem::file_size(path, error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));
  if (num_bytes > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": has ", num_bytes, " bytes, more than the limit of ", max_bytes));
  }
  std::string text(num_bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(num_bytes))) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be read"));
  }
  return text;
}

}  // namespace plumbline
