// ChildProcess: one child of this process, with its standard input filled in advance and its stderr
// on a pipe.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace plumbline {

struct ChildProcess {
  pid_t pid = -1;
  int stderr_fd = -1;  // non-blocking; ends when the child does
};

// The child gets SIGKILL when the calling THREAD ends, a process group of its own (a terminal's
// Ctrl-C is for the parent to handle), and no other descriptor of this process. `input` is at most
// a pipe's capacity (4096 bytes).
absl::StatusOr<ChildProcess> StartChild(const std::vector<std::string>& command,
                                        const std::string& input);

}  // namespace plumbline
