#include "parallel/rank_progress.h"

#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

const char* NameOf(RankOperation call) {
  switch (call) {
    case RankOperation::kAllGather: return "all-gather";
    case RankOperation::kAllToAll: return "all-to-all";
    case RankOperation::kBroadcast: return "broadcast";
    case RankOperation::kSend: return "send";
    case RankOperation::kRecv: return "receive";
    case RankOperation::kIdle:
    case RankOperation::kCompute: return "no call";
  }
  return "no call";
}

}  // namespace

std::string Describe(const RankProgress& progress) {
  switch (progress.operation) {
    case RankOperation::kIdle:
      return progress.step == 0 && progress.collectives == 0 ? "idle, no step begun"
                                                             : absl::StrCat("idle after step ", progress.step);
    case RankOperation::kCompute:
      return absl::StrCat("computing in step ", progress.step, " after collective ", progress.collectives);
    default: break;
  }
  const uint64_t number = progress.operation == RankOperation::kSend   ? progress.sends
                          : progress.operation == RankOperation::kRecv ? progress.receives
                                                                       : progress.collectives;
  return absl::StrCat("waiting in ", NameOf(progress.operation), " ", number, " of step ", progress.step);
}

void ProgressRecord::BeginStep(uint64_t step) {
  std::lock_guard lock(mutex_);
  progress_.step = step;
  progress_.operation = RankOperation::kCompute;
}

void ProgressRecord::EndStep() {
  std::lock_guard lock(mutex_);
  progress_.operation = RankOperation::kIdle;
}

void ProgressRecord::Enter(RankOperation call) {
  std::lock_guard lock(mutex_);
  progress_.operation = call;
  if (call == RankOperation::kSend) {
    ++progress_.sends;
  } else if (call == RankOperation::kRecv) {
    ++progress_.receives;
  } else {
    ++progress_.collectives;
  }
}

void ProgressRecord::Leave() {
  std::lock_guard lock(mutex_);
  progress_.operation = RankOperation::kCompute;
}

RankProgress ProgressRecord::Get() const {
  std::lock_guard lock(mutex_);
  return progress_;
}

}  // namespace plumbline
