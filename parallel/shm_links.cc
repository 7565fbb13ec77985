#include "parallel/shm_links.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "parallel/group_errors.h"

namespace plumbline {
namespace {

constexpr char kYes[] = "yes ";  // followed by the memory's address
constexpr char kNo[] = "no ";    // followed by the reason

// What one rank leaves in the store.
std::string AnswerKey(const GroupMember& member, int rank) { return absl::StrCat(member.group, "/shm/", rank); }

absl::StatusOr<std::unique_ptr<ShmSegment>> MakeOrOpen(const GroupMember& member, const std::string& answer_of_0) {
  absl::string_view address = answer_of_0;
  if (member.rank > 0 && !absl::ConsumePrefix(&address, kYes)) return absl::CancelledError("rank 0 shares no memory");
  auto segment = member.rank == 0 ? ShmSegment::Create(member.size) : ShmSegment::Open(std::string(address), member.size);
  if (!segment.ok()) return segment;
  if (absl::Status status = (*segment)->Join(member.rank); !status.ok()) return status;
  return segment;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShmSegment>> JoinShmSegment(const GroupMember& member, RendezvousStore& store) {
  const absl::Time deadline = absl::Now() + member.connect_timeout;
  std::vector<std::string> answers(member.size);
  const auto get = [&](int peer) {
    if (peer == member.rank || !answers[peer].empty()) return absl::OkStatus();
    absl::StatusOr<std::string> answer = store.Get(AnswerKey(member, peer), deadline - absl::Now());
    if (!answer.ok()) return DidNotJoin(member, peer, answer.status());
    answers[peer] = *std::move(answer);
    return absl::OkStatus();
  };
  if (absl::Status status = get(0); !status.ok()) return status;
  auto segment = MakeOrOpen(member, answers[0]);
  answers[member.rank] =
      segment.ok() ? absl::StrCat(kYes, (*segment)->address()) : absl::StrCat(kNo, segment.status().message());
  if (absl::Status status = store.Set(AnswerKey(member, member.rank), answers[member.rank]); !status.ok()) return status;
  for (int peer = 0; peer < member.size; ++peer) {
    if (absl::Status status = get(peer); !status.ok()) return status;
  }
  for (int rank = 0; rank < member.size; ++rank) {
    absl::string_view reason = answers[rank];
    if (absl::ConsumePrefix(&reason, kYes)) continue;
    absl::ConsumePrefix(&reason, kNo);
    return absl::FailedPreconditionError(absl::StrCat(NameOf(member), ": rank ", rank, " does not share memory: ", reason));
  }
  return segment;
}

}  // namespace plumbline
