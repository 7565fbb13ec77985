// What every communicator must do, whatever carries its bytes. Ranks are threads here; communicator_process_test kills them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "parallel/communicator.h"
#include "tests/communicator_testing.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

// The bytes that rank `from` holds for rank `to` in a round: different for every choice of the three.
Bytes Pattern(int from, int to, int round, size_t num_bytes) {
  std::mt19937_64 random(1 + from + 100 * to + 10000 * round);
  Bytes bytes(num_bytes);
  for (size_t i = 0; i < num_bytes; i += 8) {
    const uint64_t word = random();
    std::memcpy(&bytes[i], &word, std::min<size_t>(8, num_bytes - i));
  }
  return bytes;
}

Bytes Concat(int size, const std::function<Bytes(int)>& part) {
  Bytes all;
  for (int r = 0; r < size; ++r) {
    const Bytes bytes = part(r);
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

enum class Transport { kLocal, kGloo, kShm };

using Members = std::vector<std::unique_ptr<Communicator>>;

Members MakeGroup(Transport transport, int size, absl::Duration timeout) {
  if (transport == Transport::kLocal) return MakeLocalGroup(size, timeout);
  Members members(size);
  std::unique_ptr<RendezvousStore> store = MakeInProcessStore();
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      const GroupMember options = {.rank = r,
                                   .size = size,
                                   .group = "test",
                                   .bind_address = "127.0.0.1",
                                   .timeout = timeout,
                                   .connect_timeout = kPatience};
      auto member = transport == Transport::kShm ? ConnectShm(options, *store) : ConnectGloo(options, *store);
      EXPECT_TRUE(member.ok()) << member.status();
      if (member.ok()) members[r] = *std::move(member);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return members;
}

// Runs f(member) on one thread per rank.
void OnEachRank(Members& members, const std::function<void(std::unique_ptr<Communicator>&)>& f) {
  std::vector<std::thread> threads;
  for (auto& member : members) threads.emplace_back([&] { f(member); });
  for (std::thread& thread : threads) thread.join();
}

struct Shape2 {
  Transport transport;
  int size;
};

const char* NameOf(Transport transport) {
  return transport == Transport::kLocal ? "Local" : transport == Transport::kGloo ? "Gloo" : "Shm";
}

std::string NameOfCase(const testing::TestParamInfo<Shape2>& info) {
  return absl::StrCat(NameOf(info.param.transport), info.param.size);
}

std::vector<Shape2> Cases(std::vector<int> sizes) {
  std::vector<Shape2> cases;
  for (Transport transport : {Transport::kLocal, Transport::kGloo, Transport::kShm}) {
    for (int size : sizes) cases.push_back({transport, size});
  }
  return cases;
}

class EverySize : public testing::TestWithParam<Shape2> {
 protected:
  Members Make(absl::Duration timeout = kPatience) { return MakeGroup(GetParam().transport, GetParam().size, timeout); }
  int size() const { return GetParam().size; }
};
class SomeSizes : public EverySize {};

INSTANTIATE_TEST_SUITE_P(Communicator, EverySize, testing::ValuesIn(Cases({1, 2, 3, 4, 5, 6, 7, 8})), NameOfCase);
INSTANTIATE_TEST_SUITE_P(Communicator, SomeSizes, testing::ValuesIn(Cases({2, 4})), NameOfCase);

// All calls, at byte counts around no power of two, without pause between them.
TEST_P(EverySize, EveryCallMovesTheRightBytes) {
  Members members = Make();
  for (int r = 0; r < size(); ++r) {
    ASSERT_EQ(members[r]->rank(), r);
    ASSERT_EQ(members[r]->size(), size());
  }
  OnEachRank(members, [&](std::unique_ptr<Communicator>& member) {
    Communicator& group = *member;
    const int me = group.rank();
    int round = 0;
    for (size_t n : {size_t{0}, size_t{1}, size_t{3}, size_t{4097}, size_t{70001}}) {
      ++round;
      const Bytes gathered = Concat(size(), [&](int r) { return Pattern(r, 0, round, n); });
      Bytes in = Pattern(me, 0, round, n), out(size() * n);
      ASSERT_TRUE(group.AllGather(View(out), View(in)).ok());
      EXPECT_EQ(out, gathered);

      Bytes aliased(size() * n);
      std::copy(in.begin(), in.end(), aliased.begin() + me * n);
      const Tensor all = View(aliased);
      ASSERT_TRUE(group.AllGather(all, all.Rows(me * n, n)).ok());
      EXPECT_EQ(aliased, gathered);

      in = Concat(size(), [&](int to) { return Pattern(me, to, round, n); });
      ASSERT_TRUE(group.AllToAll(View(out), View(in)).ok());
      EXPECT_EQ(out, Concat(size(), [&](int from) { return Pattern(from, me, round, n); }));

      for (int root = 0; root < size(); ++root) {
        Bytes data = Pattern(me, root, round, n);
        ASSERT_TRUE(group.Broadcast(View(data), root).ok());
        EXPECT_EQ(data, Pattern(root, root, round, n));
      }

      for (int from = 0; from < size(); ++from) {
        for (int to = 0; to < size(); ++to) {
          if (from == to) continue;
          if (from == me) {
            Bytes data = Pattern(from, to, -round, n);
            ASSERT_TRUE(group.Send(View(data), to).ok());
          } else if (to == me) {
            Bytes data(n);
            ASSERT_TRUE(group.Recv(View(data), from).ok());
            EXPECT_EQ(data, Pattern(from, to, -round, n));
          }
        }
      }
    }
    EXPECT_TRUE(group.Health().ok());
  });
}

// An input may be overwritten as soon as a call returns, however late the other ranks are.
TEST_P(SomeSizes, RanksOfDifferentSpeedReadTheRightRound) {
  Members members = Make();
  OnEachRank(members, [&](std::unique_ptr<Communicator>& member) {
    const int me = member->rank();
    std::minstd_rand random(7 + me);
    Bytes in(65), out(65 * size());
    for (int round = 0; round < 200; ++round) {
      if (random() % 16 == 0) absl::SleepFor(absl::Microseconds(random() % 500));
      std::fill(in.begin(), in.end(), round * 31 + me);
      ASSERT_TRUE(member->AllGather(View(out), View(in)).ok());
      std::fill(in.begin(), in.end(), 255);
      for (int r = 0; r < size(); ++r) {
        ASSERT_EQ(out[r * 65], uint8_t(round * 31 + r));
        ASSERT_EQ(out[r * 65 + 64], uint8_t(round * 31 + r));
      }
    }
  });
}

TEST_P(SomeSizes, LargeMessages) {
  Members members = Make();
  const size_t total = size_t{16} << 20;
  OnEachRank(members, [&](std::unique_ptr<Communicator>& member) {
    const int me = member->rank();
    if (me < 2) {
      Bytes data(total + 1);
      if (me == 0) data = Pattern(0, 1, 0, total + 1);
      ASSERT_TRUE((me == 0 ? member->Send(View(data), 1) : member->Recv(View(data), 0)).ok());
      EXPECT_TRUE(data == Pattern(0, 1, 0, total + 1));
    }
    const size_t n = total / size() + 1;
    Bytes in = Pattern(me, 0, 1, n), out(n * size());
    ASSERT_TRUE(member->AllGather(View(out), View(in)).ok());
    const int other = (me + 1) % size();
    EXPECT_TRUE(Bytes(out.begin() + other * n, out.begin() + (other + 1) * n) == Pattern(other, 0, 1, n));
  });
}

// Calls that cannot finish because the last rank takes no part.
std::vector<std::function<absl::Status(Communicator&)>> CallsThatWaitForTheLastRank() {
  return {
      [](Communicator& group) {
        Bytes in(5), out(5 * group.size());
        return group.AllGather(View(out), View(in));
      },
      [](Communicator& group) {
        Bytes in(5 * group.size()), out(5 * group.size());
        return group.AllToAll(View(out), View(in));
      },
      [](Communicator& group) {
        Bytes data(5);
        return group.Broadcast(View(data), group.size() - 1);
      },
      [](Communicator& group) {
        Bytes data(5);
        return group.Recv(View(data), group.size() - 1);
      },
      [](Communicator& group) {
        Bytes data(5);
        return group.Send(View(data), group.size() - 1);
      },
  };
}

TEST_P(SomeSizes, AbortWakesWaitingCallsAndStays) {
  for (const auto& call : CallsThatWaitForTheLastRank()) {
    Members members = Make();
    std::unique_ptr<Communicator> absent = std::move(members.back());
    members.pop_back();
    const absl::Status reason = absl::CancelledError("epoch 7 is over");
    absl::Time aborted;
    std::thread aborter([&] {
      absl::SleepFor(absl::Milliseconds(30));
      aborted = absl::Now();
      for (auto& member : members) member->Abort(reason);
    });
    std::vector<absl::Status> statuses(members.size());
    OnEachRank(members, [&](auto& member) { statuses[member->rank()] = call(*member); });
    aborter.join();
    EXPECT_LT(absl::Now() - aborted, kPrompt);
    // Between processes a rank may learn of its peer's abort before its own.
    EXPECT_EQ(statuses[0], reason);
    for (auto& member : members) {
      EXPECT_FALSE(statuses[member->rank()].ok());
      member->Abort(absl::InternalError("a second reason"));
      EXPECT_EQ(member->Health(), statuses[member->rank()]);
      EXPECT_EQ(call(*member), statuses[member->rank()]);
    }
  }
}

// The calls run side by side, each in a group of its own, so that the test lasts one deadline.
TEST_P(SomeSizes, DeadlineNamesTheMissingRank) {
  const auto calls = CallsThatWaitForTheLastRank();
  const absl::Duration timeout = absl::Milliseconds(300);
  std::vector<Members> groups;
  for (size_t i = 0; i < calls.size(); ++i) groups.push_back(Make(timeout));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < calls.size(); ++i) {
    for (int r = 0; r + 1 < size(); ++r) {
      threads.emplace_back([&, i, r] {
        if (r > 0) absl::SleepFor(timeout / 2);  // rank 0 is the first to lose patience
        const absl::Status status = calls[i](*groups[i][r]);
        EXPECT_FALSE(status.ok());
        if (r == 0) {
          EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
          EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0"));
          EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("rank ", size() - 1, " did not")));
        }
        const absl::Time again = absl::Now();
        EXPECT_EQ(calls[i](*groups[i][r]), status);
        EXPECT_EQ(groups[i][r]->Health(), status);
        EXPECT_LT(absl::Now() - again, timeout);
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(SomeSizes, RankThatLeavesFailsThoseThatWaitForItAtOnce) {
  for (const auto& call : CallsThatWaitForTheLastRank()) {
    Members members = Make();
    const absl::Time begin = absl::Now();
    OnEachRank(members, [&](std::unique_ptr<Communicator>& member) {
      if (member->rank() == size() - 1) {
        absl::SleepFor(absl::Milliseconds(20));
        member.reset();
        return;
      }
      const absl::Status status = call(*member);
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("left the group"));
      EXPECT_EQ(call(*member), status);
    });
    EXPECT_LT(absl::Now() - begin, kPrompt);
  }
}

// A rank is done with a group when its own last call has returned; slower ranks must still get all their bytes.
TEST_P(SomeSizes, LeavingAfterTheLastCallDisturbsNobody) {
  for (int repeat = 0; repeat < 3; ++repeat) {
    Members members = Make();
    OnEachRank(members, [&](std::unique_ptr<Communicator>& member) {
      const int me = member->rank();
      for (int round = 0; round < 3; ++round) {
        const size_t n = 100007;
        Bytes in = Pattern(me, 0, round, n), out(n * size());
        const absl::Status status = member->AllGather(View(out), View(in));
        ASSERT_TRUE(status.ok()) << status;
        for (int r = 0; r < size(); ++r) {
          ASSERT_TRUE(std::equal(out.begin() + r * n, out.begin() + (r + 1) * n, Pattern(r, 0, round, n).begin()));
        }
      }
      member.reset();
    });
  }
}

TEST_P(SomeSizes, GroupsOfOneProcessAreIndependent) {
  Members ended = Make();
  Members alive = Make();
  ended[0]->Abort(absl::CancelledError("over"));
  OnEachRank(alive, [&](std::unique_ptr<Communicator>& member) {
    Bytes in(3), out(3 * size());
    EXPECT_TRUE(member->AllGather(View(out), View(in)).ok());
  });
}

// ---- connecting -----------------------------------------------------------------------------------------------------

TEST(ConnectGloo, SaysWhatIsWrong) {
  std::unique_ptr<RendezvousStore> store = MakeInProcessStore();
  GroupMember member = {.rank = 1, .size = 3, .group = "g", .bind_address = "127.0.0.1",
                        .timeout = absl::Milliseconds(100)};
  const absl::Status missing = ConnectGloo(member, *store).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("rank 1 of group 'g': rank 0 did not join within 100ms"));

  ASSERT_TRUE(store->Set("other/gloo/0", "00").ok());
  member.group = "other";
  EXPECT_EQ(ConnectGloo(member, *store).status().code(), absl::StatusCode::kInvalidArgument);

  member.group = "g2";
  for (const char* address : {"", "no.such.host.invalid"}) {
    member.bind_address = address;
    const absl::Status status = ConnectGloo(member, *store).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("bind address"));
  }
  member.bind_address = "192.0.2.1";  // of no interface here: reserved for documentation
  EXPECT_EQ(ConnectGloo(member, *store).status().code(), absl::StatusCode::kUnavailable);
}

TEST(ConnectNccl, IsAbsentFromThisBuild) {
  std::unique_ptr<RendezvousStore> store = MakeInProcessStore();
  const absl::Status status = ConnectNccl({.group = "g"}, *store).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no NCCL"));
}

TEST(InProcessStore, GetWaitsForSet) {
  std::unique_ptr<RendezvousStore> store = MakeInProcessStore();
  std::thread setter([&] {
    absl::SleepFor(absl::Milliseconds(20));
    EXPECT_TRUE(store->Set("key", "value").ok());
  });
  EXPECT_EQ(*store->Get("key", absl::InfiniteDuration()), "value");
  setter.join();
  const absl::Status status = store->Get("absent", absl::Milliseconds(10)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'absent'"));
}

}  // namespace
}  // namespace plumbline
