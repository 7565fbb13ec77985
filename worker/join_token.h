// The secret that lets a worker join a cluster. It is read from a file or from standard input,
// never from the command line, which every user of the host can read.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace plumbline {

// The first line of the file; "-" is standard input. INVALID_ARGUMENT when it is empty or longer
// than 4096 bytes.
absl::StatusOr<std::string> ReadJoinToken(const std::string& path);

}  // namespace plumbline
