// Who may join a cluster, and in which arithmetic it runs; the secret that lets workers in; the
// store of an epoch.
#include "coordinator/cluster/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "coordinator/cluster/epoch_store.h"
#include "coordinator/cluster/join_token.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

WorkerIdentity Identity(int64_t pid, std::vector<std::string> arithmetics) {
  return {.build = "b", .host = "h", .pid = pid, .arithmetics = std::move(arithmetics)};
}

TEST(MembershipTest, TheFastestArithmeticThatAllHaveIsChosenAndStays) {
  Membership membership({.mesh = {.tp = 2, .pp = 1}, .build = "b"});
  ASSERT_TRUE(membership.Join(Identity(1, {"amx", "avx512", "avx2"})).ok());
  EXPECT_FALSE(membership.complete());
  EXPECT_EQ(membership.missing(), std::vector<int>{1});
  ASSERT_TRUE(membership.Join(Identity(2, {"avx512", "avx2"})).ok());
  ASSERT_TRUE(membership.complete());
  EXPECT_EQ(membership.FixArithmetic(), "avx512");
  // A replacement must do the same: the bits of a run do not change.
  membership.Leave(0);
  const auto slower = membership.Join(Identity(3, {"avx2"}));
  EXPECT_THAT(slower.status().message(),
              HasSubstr("worker h 3 can do arithmetic avx2; this run is in avx512"));
  EXPECT_EQ(*membership.Join(Identity(4, {"amx", "avx512"})), 0);
  EXPECT_EQ(membership.FixArithmetic(), "avx512");
}

TEST(MembershipTest, AWorkerThatSharesNoArithmeticStandsApart) {
  Membership membership({.mesh = {.tp = 4, .pp = 1}, .build = "b"});
  ASSERT_TRUE(membership.Join(Identity(1, {"amx", "avx2"})).ok());
  ASSERT_TRUE(membership.Join(Identity(2, {"avx2"})).ok());
  const auto apart = membership.Join(Identity(3, {"neon"}));
  EXPECT_TRUE(absl::IsUnimplemented(apart.status()));
  EXPECT_THAT(apart.status().message(),
              HasSubstr("worker h 3 can do arithmetic neon; the others share avx2"));
}

TEST(MembershipTest, RanksOfOneHostShareItsMemory) {
  Membership membership({.mesh = {.tp = 2, .pp = 1}, .build = "b"});
  for (int pid : {1, 2}) {
    WorkerIdentity worker = Identity(pid, {"avx2"});
    worker.memory_bytes = worker.host_memory_bytes = 100;
    ASSERT_TRUE(membership.Join(worker).ok());
  }
  const RankBytes sixty = {.rank = 0, .weight_bytes = 60}, fifty = {.rank = 1, .weight_bytes = 50};
  EXPECT_TRUE(membership.CheckMemory({sixty}).ok());
  const absl::Status status = membership.CheckMemory({sixty, fifty});
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(status.message(), HasSubstr("its ranks 0, 1 need 110 together, 10 (0.00 GiB) more"));
}

TEST(JoinTokenTest, EveryTokenIsNewAndOnlyEqualOnesAreTheSame) {
  const std::string token = MakeJoinToken();
  EXPECT_EQ(token.size(), 64u);
  EXPECT_NE(token, MakeJoinToken());
  EXPECT_TRUE(SameToken(token, token));
  EXPECT_FALSE(SameToken(token, token.substr(1)));
  EXPECT_FALSE(SameToken(token, std::string(64, '0')));
}

bool NotCancelled() { return false; }

TEST(EpochStoreTest, AValueReachesWhoeverWaitsForIt) {
  EpochStore store;
  store.Begin(3);
  std::thread waiter([&] {
    const auto value = store.Get("3/tp/0/a", absl::Seconds(30), NotCancelled);
    ASSERT_TRUE(value.ok()) << value.status();
    EXPECT_EQ(*value, "here");
  });
  EXPECT_TRUE(store.Set("3/tp/0/a", "here").ok());
  waiter.join();
  const auto missing = store.Get("3/tp/0/b", absl::Milliseconds(1), NotCancelled);
  EXPECT_TRUE(absl::IsDeadlineExceeded(missing.status()));
  EXPECT_THAT(missing.status().message(), HasSubstr("3/tp/0/b"));
  EXPECT_TRUE(absl::IsCancelled(store.Get("3/b", absl::Seconds(30), [] { return true; }).status()));
}

TEST(EpochStoreTest, AnEpochThatIsOverEndsItsWaitsAndLeavesNothing) {
  EpochStore store;
  store.Begin(3);
  ASSERT_TRUE(store.Set("3/a", "old").ok());
  std::thread waiter([&] {
    EXPECT_TRUE(absl::IsAborted(store.Get("3/b", absl::Seconds(30), NotCancelled).status()));
  });
  store.Begin(4);
  waiter.join();
  EXPECT_TRUE(absl::IsAborted(store.Get("3/a", absl::Seconds(1), NotCancelled).status()));
  EXPECT_TRUE(absl::IsAborted(store.Set("3/a", "late")));
  EXPECT_TRUE(absl::IsInvalidArgument(store.Set("a", "no epoch")));
}

}  // namespace
}  // namespace plumbline
