#include "coordinator/api/request_id.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "coordinator/api/request_builder.h"

namespace plumbline {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;

}  // namespace

std::string RequestIdOf(std::string_view offered) {
  const auto is_printable = [](char c) { return c > ' ' && c < 0x7f; };
  if (offered.empty() || offered.size() > kMaxRequestIdBytes ||
      !std::all_of(offered.begin(), offered.end(), is_printable)) {
    return absl::StrFormat("req-%016x%016x", RandomSeed(), RandomSeed());
  }
  return std::string(offered);
}

}  // namespace plumbline
