#include "parallel/rank_progress.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "parallel/counting_communicator.h"

namespace plumbline {
namespace {

using Floats = std::array<float, 4>;

Tensor View(Floats& data, int64_t count) { return {data.data(), DType::kF32, {count}}; }

class RankProgressTest : public ::testing::Test {
 protected:
  RankProgressTest() {
    auto group = MakeLocalGroup(2, absl::Seconds(30));
    for (int r = 0; r < 2; ++r) members_.push_back(MakeCountingCommunicator(std::move(group[r]), &records_[r]));
  }

  // Waits for what another thread is about to enter.
  void ExpectSoon(int rank, RankOperation operation) {
    for (int i = 0; i < 1000 && records_[rank].Get().operation != operation; ++i) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_EQ(records_[rank].Get().operation, operation);
  }

  std::array<ProgressRecord, 2> records_;
  std::vector<std::unique_ptr<Communicator>> members_;
};

TEST_F(RankProgressTest, TellsWhoHasEnteredACallAndWhoHasNot) {
  for (ProgressRecord& record : records_) record.BeginStep(17);
  Floats own = {1}, all = {}, other = {2}, others = {};
  std::thread first([&] { EXPECT_TRUE(members_[0]->AllGather(View(all, 2), View(own, 1)).ok()); });
  ExpectSoon(0, RankOperation::kAllGather);
  EXPECT_EQ(Describe(records_[0].Get()), "waiting in all-gather 1 of step 17");
  EXPECT_EQ(Describe(records_[1].Get()), "computing in step 17 after collective 0");
  EXPECT_TRUE(members_[1]->AllGather(View(others, 2), View(other, 1)).ok());
  first.join();
  EXPECT_EQ(all, (Floats{1, 2}));
  for (ProgressRecord& record : records_) {
    const RankProgress left = {.step = 17, .operation = RankOperation::kCompute, .collectives = 1};
    EXPECT_EQ(record.Get(), left);
    record.EndStep();
  }
  EXPECT_EQ(Describe(records_[0].Get()), "idle after step 17");
}

TEST_F(RankProgressTest, SendsAndReceivesAreCountedApart) {
  Floats data = {3}, received = {};
  std::thread sender([&] { EXPECT_TRUE(members_[0]->Send(View(data, 1), 1).ok()); });
  EXPECT_TRUE(members_[1]->Recv(View(received, 1), 0).ok());
  sender.join();
  EXPECT_EQ(received, data);
  EXPECT_EQ(records_[0].Get().sends, 1u);
  EXPECT_EQ(records_[0].Get().receives, 0u);
  EXPECT_EQ(records_[1].Get().receives, 1u);
  EXPECT_EQ(records_[1].Get().collectives, 0u);
}

TEST_F(RankProgressTest, ACallThatFailsIsNeverLeft) {
  Floats received = {};
  std::thread receiver([&] { EXPECT_TRUE(absl::IsCancelled(members_[1]->Recv(View(received, 1), 0))); });
  ExpectSoon(1, RankOperation::kRecv);
  EXPECT_EQ(Describe(records_[1].Get()), "waiting in receive 1 of step 0");
  members_[1]->Abort(absl::CancelledError("over"));
  receiver.join();
  EXPECT_EQ(Describe(records_[1].Get()), "waiting in receive 1 of step 0");
  EXPECT_TRUE(absl::IsCancelled(members_[1]->Health()));
}

}  // namespace
}  // namespace plumbline
