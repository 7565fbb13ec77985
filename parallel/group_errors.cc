#include "parallel/group_errors.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace plumbline {

std::string NameOf(const GroupMember& member) {
  return absl::StrCat("rank ", member.rank, " of group '", member.group, "'");
}

absl::Status DidNotJoin(const GroupMember& member, int peer, const absl::Status& store) {
  return absl::Status(store.code(), absl::StrCat(NameOf(member), ": rank ", peer, " did not join within ",
                                                 absl::FormatDuration(member.connect_timeout), ": ", store.message()));
}

std::string DidNotAnswer(const GroupMember& member, int peer) {
  return absl::StrCat("rank ", peer, " did not answer within ", absl::FormatDuration(member.timeout));
}

std::string EndedByAnother(const std::string& reason) { return absl::StrCat("group ended by another rank: ", reason); }

}  // namespace plumbline
