// Membership: which worker holds which rank, and whether a newcomer may. Pure: no clock, no
// threads, no transport.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/mesh.h"
#include "parallel/planner.h"

namespace plumbline {

// What a worker says of itself when it joins.
struct WorkerIdentity {
  std::string build;
  std::string host;
  int64_t pid = 0;
  std::vector<std::string> arithmetics;  // fastest first
  int64_t memory_bytes = 0;              // that it may use; 0: unknown
  int64_t host_memory_bytes = 0;         // free on its host, for all workers there; 0: unknown
  int wanted_rank = -1;                  // -1: any
};

class Membership {
 public:
  struct Options {
    Mesh mesh;
    std::string build;
    std::string arithmetic;  // the only one allowed; empty: the fastest that all have
  };
  explicit Membership(Options options);

  // The rank that the worker holds from now on. ALREADY_EXISTS, RESOURCE_EXHAUSTED: taken;
  // INVALID_ARGUMENT: no such rank; FAILED_PRECONDITION: another build; UNIMPLEMENTED: it lacks the
  // arithmetic of the others, and stands apart.
  absl::StatusOr<int> Join(WorkerIdentity worker);
  void Leave(int rank) { members_[rank].reset(); }

  bool complete() const;
  std::vector<int> missing() const;
  // The arithmetic of this run, the same for every later epoch. REQUIRES: complete.
  const std::string& FixArithmetic();

  // RESOURCE_EXHAUSTED when one of these ranks needs more than its worker may use, or those of one
  // host together need more than it has. `needs`: of the ranks that have yet to load.
  absl::Status CheckMemory(const std::vector<RankBytes>& needs) const;

  // "rank 2 (host 1234)": how messages name a member.
  std::string Name(int rank) const;

 private:
  absl::Status CheckArithmetic(const WorkerIdentity& worker) const;
  std::vector<std::string> CommonArithmetics() const;  // in the order of the first member
  bool empty() const;

  const Options options_;
  std::string arithmetic_;                              // fixed, or empty
  std::vector<std::optional<WorkerIdentity>> members_;  // by rank
};

}  // namespace plumbline
