// Stall: who keeps the others waiting in a step that does not end. Pure.
#pragma once

#include <string>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/rank_progress.h"

namespace plumbline {

// One rank, as far as the coordinator knows.
struct StalledRank {
  std::string name;       // for messages
  RankProgress progress;  // of its last heartbeat: it may have come further, if it is silent
  bool has_work = false;  // steps were sent to it that it has not done
  bool is_silent = false; // its heartbeats are overdue
};

// The ranks with work that wait for nobody: they have not entered the call in which the others wait, or are in one that
// all others have entered. Of several, those that are silent; more than one is left when a link between ranks is cut or all
// compute. Empty when nobody has work. `ranks` by rank.
std::vector<int> FindCulprits(const Mesh& mesh, const std::vector<StalledRank>& ranks);

// "furthest behind: NAME computing in step 17 after collective 417; others: NAME waiting in all-gather 418 of step 17".
std::string DescribeStall(const std::vector<StalledRank>& ranks, const std::vector<int>& culprits);

}  // namespace plumbline
