// How the members of a group find the memory that they share, through a RendezvousStore.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"
#include "parallel/shm_segment.h"

namespace plumbline {

// Rank 0 makes the memory, the others open it, and each tells all whether it has: so all members come to the same end.
// FAILED_PRECONDITION, on every member alike: one cannot share memory with rank 0, by name and reason.
// DEADLINE_EXCEEDED names the rank that did not join.
absl::StatusOr<std::unique_ptr<ShmSegment>> JoinShmSegment(const GroupMember& member, RendezvousStore& store);

}  // namespace plumbline
