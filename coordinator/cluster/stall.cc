#include "coordinator/cluster/stall.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace plumbline {
namespace {

// Whether somebody has yet to enter the call that the rank is in.
bool Waits(const Mesh& mesh, const std::vector<StalledRank>& ranks, int rank) {
  const RankProgress& own = ranks[rank].progress;
  const int stage = mesh.StageOf(rank), tp_index = mesh.TpIndexOf(rank);
  switch (own.operation) {
    case RankOperation::kAllGather:
    case RankOperation::kAllToAll:
    case RankOperation::kBroadcast:
      for (int i = 0; i < mesh.tp; ++i) {
        if (ranks[mesh.RankOf(stage, i)].progress.collectives < own.collectives) return true;
      }
      return false;
    case RankOperation::kSend:
      return stage + 1 < mesh.pp && ranks[mesh.RankOf(stage + 1, tp_index)].progress.receives < own.sends;
    case RankOperation::kRecv:
      return stage > 0 && ranks[mesh.RankOf(stage - 1, tp_index)].progress.sends < own.receives;
    case RankOperation::kIdle:
    case RankOperation::kCompute:
      return false;
  }
  return false;
}

}  // namespace

std::vector<int> FindCulprits(const Mesh& mesh, const std::vector<StalledRank>& ranks) {
  std::vector<int> culprits;
  for (int rank = 0; rank < mesh.size(); ++rank) {
    if (ranks[rank].has_work && !Waits(mesh, ranks, rank)) culprits.push_back(rank);
  }
  const auto speaks = [&](int rank) { return !ranks[rank].is_silent; };
  if (!std::all_of(culprits.begin(), culprits.end(), speaks)) std::erase_if(culprits, speaks);
  return culprits;
}

std::string DescribeStall(const std::vector<StalledRank>& ranks, const std::vector<int>& culprits) {
  std::vector<std::string> behind, others;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const bool is_culprit = std::count(culprits.begin(), culprits.end(), static_cast<int>(rank)) > 0;
    (is_culprit ? behind : others).push_back(absl::StrCat(ranks[rank].name, " ", Describe(ranks[rank].progress)));
  }
  return absl::StrCat("furthest behind: ", absl::StrJoin(behind, ", "), "; others: ", absl::StrJoin(others, ", "));
}

}  // namespace plumbline
