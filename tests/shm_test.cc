// Memory that ranks share: channels, how members find it, and what a member that writes anything anywhere can do to others.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "parallel/communicator.h"
#include "parallel/shm_channel.h"
#include "parallel/shm_links.h"
#include "parallel/shm_segment.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

// A ring with guards on both sides.
class GuardedRing {
 public:
  GuardedRing(int num_readers, size_t capacity) : lines_(ShmRingBytes(num_readers, capacity) / kShmLine + 2 * kGuardLines) {
    for (size_t i = 0; i < kGuardLines; ++i) GuardLine(i) = GuardLine(lines_.size() - 1 - i) = 0x5a5a5a5a;
    ring = MakeShmRing(reinterpret_cast<std::byte*>(&lines_[kGuardLines]), num_readers, capacity);
  }
  bool GuardsStand() {
    for (size_t i = 0; i < kGuardLines; ++i) {
      if (GuardLine(i) != 0x5a5a5a5a || GuardLine(lines_.size() - 1 - i) != 0x5a5a5a5a) return false;
    }
    return true;
  }

  ShmRing ring;

 private:
  static constexpr size_t kGuardLines = 4;
  struct alignas(kShmLine) Line {
    uint64_t words[8] = {};
  };
  uint64_t& GuardLine(size_t i) { return lines_[i].words[0]; }
  std::vector<Line> lines_;
};

Bytes RandomBytes(std::mt19937_64& random, size_t num_bytes) {
  Bytes bytes(num_bytes);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// Messages smaller and larger than the ring, empty ones too, to three readers of different speed.
TEST(ShmChannel, CarriesMessagesOfAnySizeToAllReaders) {
  for (size_t capacity : {size_t{128}, size_t{4096}, size_t{256} << 10}) {
    GuardedRing guarded(3, capacity);
    const int num_messages = 60;
    const auto message = [&](int i) {
      std::mt19937_64 random(i);
      return RandomBytes(random, i % 7 == 0 ? 0 : random() % (3 * std::min<size_t>(capacity, 30000)));
    };
    std::vector<std::thread> threads;
    threads.emplace_back([&] {
      ShmWriter writer(guarded.ring);
      for (int i = 0; i < num_messages; ++i) {
        const Bytes bytes = message(i);
        writer.Begin({.operation = 3, .num_bytes = bytes.size()}, bytes.data());
        for (ShmStep step; (step = writer.Step()) != ShmStep::kDone;) {
          ASSERT_NE(step, ShmStep::kBroken);
          std::this_thread::yield();
        }
      }
      while (!writer.Drained()) std::this_thread::yield();
    });
    for (int r = 0; r < 3; ++r) {
      threads.emplace_back([&, r] {
        ShmReader reader(guarded.ring, r);
        for (int i = 0; i < num_messages; ++i) {
          const Bytes expected = message(i);
          Bytes bytes(expected.size());
          reader.Begin({.operation = 3, .num_bytes = bytes.size()}, bytes.data());
          for (ShmStep step; (step = reader.Step()) != ShmStep::kDone;) {
            ASSERT_NE(step, ShmStep::kBroken) << reader.problem();
            std::this_thread::yield();
          }
          ASSERT_TRUE(bytes == expected) << "message " << i;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(guarded.GuardsStand());
  }
}

TEST(ShmChannel, AnotherMessageThanExpectedIsBroken) {
  GuardedRing guarded(1, 4096);
  Bytes data(100);
  ShmWriter writer(guarded.ring);
  writer.Begin({.operation = 1, .num_bytes = 100}, data.data());
  ASSERT_EQ(writer.Step(), ShmStep::kDone);
  ShmReader reader(guarded.ring, 0);
  reader.Begin({.operation = 1, .num_bytes = 99}, data.data());
  EXPECT_EQ(reader.Step(), ShmStep::kBroken);
  EXPECT_THAT(reader.problem(), HasSubstr("100 bytes for operation 1 instead of 99 for operation 1"));
}

// The other end leaves anything: no byte outside is touched, and it comes to an end.
TEST(ShmChannel, SurvivesGarbage) {
  std::mt19937_64 random(5);
  int broken = 0;
  for (int round = 0; round < 3000; ++round) {
    GuardedRing guarded(2, 1024);
    const ShmRing& ring = guarded.ring;
    const Bytes garbage = RandomBytes(random, ring.capacity);
    std::memcpy(ring.bytes, garbage.data(), garbage.size());
    const auto position = [&]() -> uint64_t {
      const uint64_t any[] = {random(), random() % 4096, random() % 64 * 64, uint64_t{0} - random() % 64 * 64};
      return any[random() % 4];
    };
    Bytes in = RandomBytes(random, 3000), out(3000);
    ShmWriter writer(ring);
    ShmReader reader(ring, 1);
    writer.Begin({.operation = 1, .num_bytes = in.size()}, in.data());
    reader.Begin({.operation = random() % 2, .num_bytes = out.size()}, out.data());
    for (int step = 0; step < 20; ++step) {
      ring.read[random() % 2].bytes = position();
      if (random() % 2 == 0) ring.written->bytes = position();
      if (writer.Step() == ShmStep::kBroken || reader.Step() == ShmStep::kBroken) {
        ++broken;
        break;
      }
    }
    ASSERT_TRUE(guarded.GuardsStand());
  }
  EXPECT_GT(broken, 1000);
}

// ---- finding each other ---------------------------------------------------------------------------------------------

GroupMember Member(int rank, int size) {
  return {.rank = rank, .size = size, .group = "g", .bind_address = "127.0.0.1", .timeout = absl::Seconds(20)};
}

using Members = std::vector<absl::StatusOr<std::unique_ptr<Communicator>>>;

// Rank r connects through stores[r].
Members ConnectAll(ProcessTransport transport, const std::vector<RendezvousStore*>& stores) {
  const int size = static_cast<int>(stores.size());
  Members members(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] { members[r] = ConnectProcesses(Member(r, size), transport, *stores[r]); });
  }
  for (std::thread& thread : threads) thread.join();
  return members;
}

void ExpectThatTheyExchange(Members& members) {
  std::vector<std::thread> threads;
  for (auto& member : members) {
    ASSERT_TRUE(member.ok()) << member.status();
    threads.emplace_back([&group = **member] {
      const int size = group.size();
      std::vector<uint8_t> in = {static_cast<uint8_t>(group.rank())}, out(size, 99);
      EXPECT_TRUE(group.AllGather(Tensor(out.data(), DType::kU8, {size}), Tensor(in.data(), DType::kU8, {1})).ok());
      for (int r = 0; r < size; ++r) EXPECT_EQ(out[r], r);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// What a member on another host reads: an address that leads to nothing of the group's.
class ElsewhereStore final : public RendezvousStore {
 public:
  ElsewhereStore(RendezvousStore& store, std::string address) : store_(store), address_(std::move(address)) {}
  absl::Status Set(const std::string& key, const std::string& value) override { return store_.Set(key, value); }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    auto value = store_.Get(key, timeout);
    if (value.ok() && key == "g/shm/0") return absl::StrCat("yes ", address_);
    return value;
  }

 private:
  RendezvousStore& store_;
  const std::string address_;
};

bool UsesGloo(RendezvousStore& store) { return store.Get("g/gloo/0", absl::ZeroDuration()).ok(); }

TEST(ConnectProcesses, TakesSharedMemoryOnOneHost) {
  for (ProcessTransport transport : {ProcessTransport::kAuto, ProcessTransport::kShm, ProcessTransport::kGloo}) {
    const auto store = MakeInProcessStore();
    Members members = ConnectAll(transport, {store.get(), store.get(), store.get()});
    ExpectThatTheyExchange(members);
    EXPECT_EQ(UsesGloo(*store), transport == ProcessTransport::kGloo);
  }
}

TEST(ConnectProcesses, AllTakeGlooWhenOneIsElsewhere) {
  const std::string id(32, 'a');
  const std::vector<std::string> addresses = {
      absl::StrCat("4194305 3 ", id),               // no such process
      absl::StrCat(getpid(), " 1000000 ", id),      // no such file
      absl::StrCat(getpid(), " 0 ", id),            // another file
      "", "1 2", absl::StrCat("-1 -1 ", id), absl::StrCat("../../etc/passwd 1 ", id),
  };
  for (const std::string& address : addresses) {
    for (ProcessTransport transport : {ProcessTransport::kAuto, ProcessTransport::kShm}) {
      const auto store = MakeInProcessStore();
      ElsewhereStore elsewhere(*store, address);
      Members members = ConnectAll(transport, {store.get(), store.get(), &elsewhere});
      if (transport == ProcessTransport::kAuto) {
        ExpectThatTheyExchange(members);
        EXPECT_TRUE(UsesGloo(*store));
        continue;
      }
      for (int r = 0; r < 3; ++r) {
        EXPECT_EQ(members[r].status().code(), absl::StatusCode::kFailedPrecondition) << address;
        EXPECT_THAT(std::string(members[r].status().message()),
                    HasSubstr(absl::StrCat("rank ", r, " of group 'g': rank 2 does not share memory: ")));
      }
    }
  }
}

TEST(ConnectShm, SaysWhatIsWrong) {
  const auto store = MakeInProcessStore();
  GroupMember member = Member(1, 3);
  member.connect_timeout = absl::Milliseconds(100);
  const absl::Status missing = ConnectShm(member, *store).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("rank 1 of group 'g': rank 0 did not join within 100ms"));

  EXPECT_EQ(ParseProcessTransport("tcp").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ShmSegment, IsRefusedToAnotherGroup) {
  auto segment = ShmSegment::Create(2);
  ASSERT_TRUE(segment.ok()) << segment.status();
  std::string address = (*segment)->address();
  EXPECT_TRUE(ShmSegment::Open(address, 2).ok());
  EXPECT_FALSE(ShmSegment::Open(address, 3).ok()) << "a group of another size";
  address.back() = address.back() == '0' ? '1' : '0';
  EXPECT_EQ(ShmSegment::Open(address, 2).status().code(), absl::StatusCode::kNotFound) << "another id";
  EXPECT_FALSE(ShmSegment::Create(ShmSegment::kMaxMembers + 1).ok());
  EXPECT_TRUE(ShmSegment::Create(ShmSegment::kMaxMembers).ok());
}

TEST(ShmSegment, APlaceIsHeldByOneAndFreedWithIt) {
  auto maker = ShmSegment::Create(2);
  ASSERT_TRUE(maker.ok() && (*maker)->Join(0).ok());
  auto other = ShmSegment::Open((*maker)->address(), 2);
  ASSERT_TRUE(other.ok());
  EXPECT_EQ((*other)->Join(0).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_FALSE((*maker)->IsHeld(1));
  ASSERT_TRUE((*other)->Join(1).ok());
  EXPECT_TRUE((*maker)->IsHeld(1));
  EXPECT_TRUE((*other)->IsHeld(0));
  other->reset();
  EXPECT_FALSE((*maker)->IsHeld(1));
}

// ---- a member that goes wrong ---------------------------------------------------------------------------------------

absl::Status Gather(Communicator& group) {
  std::vector<uint8_t> in(100), out(100 * group.size());
  return group.AllGather(Tensor(out.data(), DType::kU8, {static_cast<int64_t>(out.size())}),
                         Tensor(in.data(), DType::kU8, {100}));
}

TEST(ShmCommunicator, PositionThatCannotBeEndsTheGroupByName) {
  const auto store = MakeInProcessStore();
  absl::StatusOr<std::unique_ptr<ShmSegment>> hostile;
  std::thread joiner([&] { hostile = JoinShmSegment(Member(1, 2), *store); });
  auto member = ConnectShm(Member(0, 2), *store);
  joiner.join();
  ASSERT_TRUE(member.ok() && hostile.ok());
  (*hostile)->RingToAll(1).written->bytes = uint64_t{1} << 40;
  const absl::Status status = Gather(**member);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 of group 'g', AllGather: rank 1 left a ring of"));
  EXPECT_EQ((*member)->Health(), status);
}

// Another member fills all of the memory with anything, again and again.
TEST(ShmCommunicator, SurvivesGarbageInAllOfTheMemory) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 30; ++round) {
    const auto store = MakeInProcessStore();
    absl::StatusOr<std::unique_ptr<ShmSegment>> hostile;
    std::thread joiner([&] { hostile = JoinShmSegment(Member(1, 2), *store); });
    GroupMember options = Member(0, 2);
    options.timeout = absl::Milliseconds(200);
    auto member = ConnectShm(options, *store);
    joiner.join();
    ASSERT_TRUE(member.ok() && hostile.ok());
    const std::vector<std::string> parts = absl::StrSplit((*hostile)->address(), ' ');
    const int fd = open(absl::StrCat("/proc/", parts[0], "/fd/", parts[1]).c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_GE(fd, 0);
    struct stat file;
    ASSERT_EQ(fstat(fd, &file), 0);
    EXPECT_NE(ftruncate(fd, 0), 0) << "the memory can be taken away";
    std::atomic<bool> done = false;
    std::thread scribbler([&] {
      // Sparse in the first rounds, so that some of it is understood.
      std::vector<uint64_t> words(file.st_size / 8);
      for (size_t i = 0; i < words.size(); i += 1 + round % 8) words[i] = round % 3 == 0 ? random() % 3 * 64 : random();
      while (!done) {
        EXPECT_EQ(pwrite(fd, words.data(), file.st_size, 0), file.st_size);
        absl::SleepFor(absl::Milliseconds(1));
      }
    });
    absl::Status status;
    const absl::Time end = absl::Now() + absl::Seconds(5);
    while (status.ok() && absl::Now() < end) status = Gather(**member);
    (void)(*member)->Health();
    member->reset();
    done = true;
    scribbler.join();
    close(fd);
  }
}

}  // namespace
}  // namespace plumbline
