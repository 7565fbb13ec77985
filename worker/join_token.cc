#include "worker/join_token.h"

#include <fstream>
#include <iostream>

#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

constexpr size_t kMaxTokenBytes = 4096;

}  // namespace

absl::StatusOr<std::string> ReadJoinToken(const std::string& path) {
  std::ifstream file;
  if (path != "-") {
    file.open(path);
    if (!file)
      return absl::NotFoundError(absl::StrCat("join token file ", path, " cannot be read"));
  }
  std::istream& in = path == "-" ? std::cin : file;
  std::string token;
  for (char c; token.size() <= kMaxTokenBytes && in.get(c) && c != '\n';) token.push_back(c);
  if (!token.empty() && token.back() == '\r') token.pop_back();
  if (token.empty() || token.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat("join token of ", path, " has ", token.size(),
                                                   " bytes on its first line; 1 to ",
                                                   kMaxTokenBytes, " are expected"));
  }
  return token;
}

}  // namespace plumbline
