// Launcher: the worker processes of this host as children. Restarts one that dies, forwards what
// they write to stderr, and sees that none outlives this process, however that ends.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/tls_identity.h"

namespace plumbline {

struct LauncherOptions {
  // Program and first arguments; "--rank N" is appended. The join token is the child's standard
  // input, one line.
  std::vector<std::string> command;
  std::string join_token;
  std::vector<int> ranks;
  int max_restarts_per_minute = 20;  // of all ranks together
  absl::Duration max_backoff = absl::Seconds(5);
  // A line that a rank wrote to stderr, without its end. From the launcher's thread.
  std::function<void(int rank, const std::string& line)> on_line;
  // Restarting is given up, for a reason to tell the user. From the launcher's thread; must not
  // wait for it.
  std::function<void(absl::Status)> on_give_up;
};

class Launcher {
 public:
  // Starts the children. NOT_FOUND: the program.
  static absl::StatusOr<std::unique_ptr<Launcher>> Start(LauncherOptions options);
  // Stops what still runs.
  virtual ~Launcher() = default;

  // Waits up to `patience` for the children to end by themselves, then kills them. None is
  // restarted. Idempotent.
  virtual void Stop(absl::Duration patience) = 0;
  // Kills the rank's process when it is still this one; it is restarted. Any thread; does not
  // block.
  virtual void Kill(int rank, int64_t pid) = 0;
  // Of the rank's child, or -1 while there is none.
  virtual int64_t pid(int rank) const = 0;
};

// The command that starts a worker for this coordinator: the running program itself, as
// `plumbline worker --coordinator HOST:PORT --join-token-file - --threads N`, and the paths of
// `tls` when there are any.
std::vector<std::string> WorkerCommand(const std::string& worker_address, int num_threads,
                                       const TlsFiles& tls);

}  // namespace plumbline
