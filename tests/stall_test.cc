#include "coordinator/cluster/stall.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plumbline {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using enum RankOperation;

StalledRank At(RankOperation operation, uint64_t collectives, uint64_t sends = 0, uint64_t receives = 0) {
  return {.name = "",
          .progress = {.step = 1,
                       .operation = operation,
                       .collectives = collectives,
                       .sends = sends,
                       .receives = receives},
          .has_work = true};
}

StalledRank Silent(StalledRank rank) {
  rank.is_silent = true;
  return rank;
}

StalledRank Done(StalledRank rank) {
  rank.has_work = false;
  return rank;
}

TEST(StallTest, WhoHasNotEnteredTheCollectiveIsToBlame) {
  EXPECT_THAT(FindCulprits({.tp = 4, .pp = 1}, {At(kAllGather, 8), At(kAllGather, 8), At(kCompute, 7), At(kAllGather, 8)}),
              ElementsAre(2));
  EXPECT_THAT(FindCulprits({.tp = 2, .pp = 1}, {At(kIdle, 0), At(kAllGather, 1)}), ElementsAre(0))
      << "it has not begun its step";
}

TEST(StallTest, WhoIsStuckInACollectiveThatTheOthersHaveLeftIsToBlame) {
  EXPECT_THAT(FindCulprits({.tp = 2, .pp = 1}, {At(kAllToAll, 8), At(kAllGather, 9)}), ElementsAre(0));
}

// Rank 1 of stage 0 hangs; rank 0 waits for it in the collective, stage 1 for both in its receives.
TEST(StallTest, WaitingIsFollowedThroughThePipeline) {
  const Mesh mesh = {.tp = 2, .pp = 2};
  EXPECT_THAT(FindCulprits(mesh, {At(kAllGather, 8, 3, 0), At(kCompute, 7, 3, 0), At(kRecv, 20, 0, 4), At(kRecv, 20, 0, 4)}),
              ElementsAre(1));
  // Rank 3 hangs; stage 0 is steps ahead, and rank 1's send is not taken.
  EXPECT_THAT(FindCulprits(mesh, {Done(At(kIdle, 40, 5, 0)), At(kSend, 40, 5, 0), At(kAllGather, 9, 0, 4),
                                  At(kCompute, 8, 0, 4)}),
              ElementsAre(3));
  // Of stages that are done, nobody is to blame for what another does with its step.
  EXPECT_THAT(FindCulprits(mesh, {Done(At(kIdle, 40, 4, 0)), Done(At(kIdle, 40, 4, 0)), At(kCompute, 8, 0, 4),
                                  At(kAllGather, 9, 0, 4)}),
              ElementsAre(2));
}

// What a stopped rank said last is older than the others' news.
TEST(StallTest, ASilentRankIsBlamedWhateverItSaidLast) {
  EXPECT_THAT(FindCulprits({.tp = 2, .pp = 1}, {At(kAllGather, 90), Silent(At(kAllGather, 41))}), ElementsAre(1));
  EXPECT_THAT(FindCulprits({.tp = 2, .pp = 1}, {At(kAllGather, 41), Silent(At(kAllGather, 41))}), ElementsAre(1));
  EXPECT_THAT(FindCulprits({.tp = 2, .pp = 2}, {At(kCompute, 90, 7, 0), At(kAllGather, 91, 7, 0), Silent(At(kRecv, 3, 0, 6)),
                                                At(kAllGather, 80, 0, 7)}),
              ElementsAre(2));
}

TEST(StallTest, WhereNobodyIsFurtherBehindAllAreNamed) {
  EXPECT_THAT(FindCulprits({.tp = 2, .pp = 1}, {At(kAllGather, 8), At(kAllGather, 8)}), ElementsAre(0, 1)) << "a cut link";
  EXPECT_THAT(FindCulprits({.tp = 2, .pp = 1}, {At(kCompute, 8), At(kCompute, 8)}), ElementsAre(0, 1)) << "a long product";
  EXPECT_THAT(FindCulprits({.tp = 2, .pp = 1}, {Done(At(kIdle, 8)), Done(At(kIdle, 8))}), IsEmpty());
}

TEST(StallTest, SaysWhatEachRankIsAt) {
  std::vector<StalledRank> ranks = {At(kAllGather, 8), At(kCompute, 7)};
  ranks[0].name = "rank 0 (a 10)";
  ranks[1].name = "rank 1 (b 11)";
  EXPECT_EQ(DescribeStall(ranks, {1}),
            "furthest behind: rank 1 (b 11) computing in step 1 after collective 7; others: rank 0 (a 10) waiting in "
            "all-gather 8 of step 1");
}

}  // namespace
}  // namespace plumbline
