// A worker process: dials the coordinator, holds one rank of its model, runs the steps it is sent.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/tls_identity.h"

namespace plumbline {

struct RankWorkerOptions {
  std::string coordinator;  // HOST:PORT of its worker link
  std::string join_token;
  TlsIdentity tls;           // of this worker in its cluster (LoadMemberIdentity); not set: plain
  std::string build;         // compared with the coordinator's; BuildId()
  int wanted_rank = -1;      // -1: any
  int num_threads = 0;       // 0: as the coordinator says
  std::string bind_address;  // where peers reach this worker; empty: this host's address on the way
                             // to the coordinator
  int64_t memory_limit_bytes = 0;  // 0: what is free on this host
  std::string model_dir;           // empty: the coordinator's path
  std::string cache_dir;           // of packed weights (worker/weight_cache.h); empty: none
  absl::Duration connect_timeout = absl::Seconds(60);
};

// Returns OK when the coordinator sent it home, or why it had to end: refused, coordinator gone.
// The stream to the coordinator is this process's reason to live: when it has ended and the rank
// cannot be stopped in good order within two seconds (a kernel that does not come back), the
// process is ended with exit code 1 and one line on stderr.
absl::Status RunRankWorker(RankWorkerOptions options);

}  // namespace plumbline
