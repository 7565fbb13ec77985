// What the transports between processes say alike when something goes wrong.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "parallel/communicator.h"

namespace plumbline {

// "rank 1 of group 'g'"
std::string NameOf(const GroupMember& member);
// `peer` left nothing in the store within connect_timeout, says `store`.
absl::Status DidNotJoin(const GroupMember& member, int peer, const absl::Status& store);
// "rank 1 did not answer within 1s"
std::string DidNotAnswer(const GroupMember& member, int peer);
// "group ended by another rank: REASON"
std::string EndedByAnother(const std::string& reason);

}  // namespace plumbline
