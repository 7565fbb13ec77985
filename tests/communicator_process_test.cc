// Ranks as processes: killed, stopped, far away. Run as
// `communicator_process_test --peer TRANSPORT RANK SIZE DIRECTORY TASK` this program is one rank of a group.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "parallel/communicator.h"
#include "tests/communicator_testing.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

// Keys are files; for the processes of one test.
class DirectoryStore final : public RendezvousStore {
 public:
  explicit DirectoryStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

  absl::Status Set(const std::string& key, const std::string& value) override {
    std::ofstream(Path(key) += ".new") << value;
    std::filesystem::rename(Path(key) += ".new", Path(key));
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    for (const absl::Time end = absl::Now() + timeout; absl::Now() < end; absl::SleepFor(absl::Milliseconds(2))) {
      std::ifstream file(Path(key));
      if (!file) continue;
      std::stringstream value;
      value << file.rdbuf();
      return value.str();
    }
    return absl::DeadlineExceededError(key);
  }

 private:
  std::filesystem::path Path(std::string key) const {
    std::replace(key.begin(), key.end(), '/', '_');
    return directory_ / key;
  }
  const std::filesystem::path directory_;
};

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string WordsFile(const std::string& directory, int rank) { return absl::StrCat(directory, "/words_", rank); }

absl::StatusOr<std::unique_ptr<Communicator>> JoinProcesses(const std::string& transport, int rank, int size,
                                                            const std::string& directory, absl::Duration timeout) {
  DirectoryStore store(directory);
  absl::StatusOr<ProcessTransport> parsed = ParseProcessTransport(transport);
  if (!parsed.ok()) return parsed.status();
  return ConnectProcesses(
      {.rank = rank, .size = size, .group = "processes", .bind_address = "127.0.0.1", .timeout = timeout}, *parsed, store);
}

// The byte that rank `from` has for rank `to` at place i of a round.
uint8_t ByteOf(int from, int to, int round, size_t i) {
  return static_cast<uint8_t>((i + 1) * 31 + (i >> 8) * 7 + 17 * from + 59 * to + 101 * round);
}

// Every call with messages of n bytes; DATA_LOSS when a byte is wrong.
absl::Status ExchangeAll(Communicator& group, int round, size_t n) {
  const int me = group.rank(), size = group.size();
  const absl::Status wrong = absl::DataLossError(absl::StrCat("rank ", me, ", round ", round, ", ", n, " bytes"));
  Bytes in(n * size), out(n * size);
  for (size_t i = 0; i < n; ++i) in[i] = ByteOf(me, 0, round, i);
  if (absl::Status status = group.AllGather(View(out), View(in).Rows(0, n)); !status.ok()) return status;
  for (size_t i = 0; i < n * size; ++i) {
    if (out[i] != ByteOf(static_cast<int>(i / n), 0, round, i % n)) return wrong;
  }
  for (size_t i = 0; i < n * size; ++i) in[i] = ByteOf(me, static_cast<int>(i / n), round, i % n);
  if (absl::Status status = group.AllToAll(View(out), View(in)); !status.ok()) return status;
  for (size_t i = 0; i < n * size; ++i) {
    if (out[i] != ByteOf(static_cast<int>(i / n), me, round, i % n)) return wrong;
  }
  const int root = round % size, next = (root + 1) % size;
  Bytes data(n);
  for (size_t i = 0; i < n; ++i) data[i] = ByteOf(me, me, round, i);
  if (absl::Status status = group.Broadcast(View(data), root); !status.ok()) return status;
  if (me == root || me == next) {
    const absl::Status status = me == root ? group.Send(View(in), next) : group.Recv(View(in), root);
    if (!status.ok()) return status;
  }
  for (size_t i = 0; i < n; ++i) {
    if (data[i] != ByteOf(root, root, round, i)) return wrong;
    if (me == next && in[i] != ByteOf(root, 0, round, i)) return wrong;
  }
  return absl::OkStatus();
}

absl::Status ExchangeRounds(Communicator& group) {
  int round = 0;
  for (size_t n : {size_t{1}, size_t{63}, size_t{4096}, size_t{16} << 10, size_t{70001}, size_t{1} << 19}) {
    for (int repeat = 0; repeat < (n > 100000 ? 1 : 5); ++repeat) {
      if (absl::Status status = ExchangeAll(group, ++round, n); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

// What a process repeats until something ends it.
absl::Status Step(Communicator& group, const std::string& task) {
  if (task == "exchange") {
    absl::Status status = ExchangeRounds(group);
    return status.ok() ? absl::OutOfRangeError("all rounds are done") : status;
  }
  if (task == "gather") {
    Bytes in(20 << 10), out(in.size() * group.size());
    return group.AllGather(View(out), View(in));
  }
  static Bytes large(64 << 20);  // long on its way: most of the time the sender dies in the middle of it
  if (group.rank() == 1) return group.Send(View(large), 0);
  if (group.rank() == 0) return group.Recv(View(large), 1);
  absl::SleepFor(absl::Milliseconds(1));
  return group.Health();
}

int RunPeer(const std::string& transport, int rank, int size, const std::string& directory, const std::string& task) {
  auto group = JoinProcesses(transport, rank, size, directory, absl::Seconds(10));
  if (!group.ok()) return 2;
  absl::Status status;
  while (status.ok()) status = Step(**group, task);
  std::ofstream(WordsFile(directory, rank)) << status.ToString();
  return 0;
}

// Ranks 1 .. size - 1 as processes of this program; ended with the object.
class PeerProcesses {
 public:
  PeerProcesses(const std::string& transport, int size, const std::string& task)
      : directory_(testing::TempDir() + absl::StrCat("/peers_", getpid(), "_", absl::GetCurrentTimeNanos())) {
    std::filesystem::create_directories(directory_);
    for (int rank = 1; rank < size; ++rank) {
      const std::vector<std::string> words = {
          "communicator_process_test", "--peer", transport, std::to_string(rank), std::to_string(size), directory_, task};
      std::vector<char*> argv;
      for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
      argv.push_back(nullptr);
      const pid_t pid = fork();
      if (pid == 0) {
        execv("/proc/self/exe", argv.data());
        _exit(127);
      }
      pids_.push_back(pid);
    }
  }

  ~PeerProcesses() {
    for (pid_t pid : pids_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
    std::filesystem::remove_all(directory_);
  }

  // Why the process says that it ended.
  std::string LastWords(int rank) const { return ReadFile(WordsFile(directory_, rank)); }
  const std::string& directory() const { return directory_; }
  void Signal(int rank, int signal) { kill(pids_[rank - 1], signal); }
  // How the process ended; it must have within the time.
  bool EndsWithin(int rank, absl::Duration time) {
    for (const absl::Time end = absl::Now() + time; absl::Now() < end; absl::SleepFor(absl::Milliseconds(2))) {
      siginfo_t info = {};
      waitid(P_PID, pids_[rank - 1], &info, WEXITED | WNOHANG | WNOWAIT);
      if (info.si_pid != 0) return info.si_code == CLD_EXITED && info.si_status == 0;
    }
    return false;
  }

 private:
  std::string directory_;
  std::vector<pid_t> pids_;  // of rank index + 1
};

struct Ending {
  absl::Status status;
  absl::Duration after;  // from the signal
};

class Processes : public testing::TestWithParam<std::string> {
 protected:
  Ending RunUntilSignalled(PeerProcesses& peers, int size, const std::string& task, int signal, absl::Duration timeout) {
    auto group = JoinProcesses(GetParam(), 0, size, peers.directory(), timeout);
    if (!group.ok()) return {group.status()};
    if (absl::Status status = Step(**group, task); !status.ok()) return {status};
    absl::Time signalled;
    std::thread killer([&] {
      absl::SleepFor(absl::Milliseconds(50));
      signalled = absl::Now();
      peers.Signal(1, signal);
    });
    absl::Status status;
    while (status.ok()) status = Step(**group, task);
    const absl::Time end = absl::Now();
    killer.join();
    return {status, end - signalled};
  }
};

INSTANTIATE_TEST_SUITE_P(Transports, Processes, testing::Values("gloo", "shm"), [](const auto& info) { return info.param; });

TEST_P(Processes, ExchangeTheRightBytes) {
  for (int size : {2, 3, 8}) {
    PeerProcesses peers(GetParam(), size, "exchange");
    auto group = JoinProcesses(GetParam(), 0, size, peers.directory(), kPatience);
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ(ExchangeRounds(**group), absl::OkStatus());
    for (int rank = 1; rank < size; ++rank) {
      EXPECT_TRUE(peers.EndsWithin(rank, kPatience));
      EXPECT_EQ(peers.LastWords(rank), "OUT_OF_RANGE: all rounds are done");
    }
  }
}

TEST_P(Processes, KilledPeerIsNamedAtOnceByAll) {
  PeerProcesses peers(GetParam(), 3, "gather");
  const Ending ending = RunUntilSignalled(peers, 3, "gather", SIGKILL, kPatience);
  EXPECT_EQ(ending.status.code(), absl::StatusCode::kUnavailable) << ending.status;
  EXPECT_THAT(std::string(ending.status.message()),
              HasSubstr("lost the connection to rank 1"));  // seen by rank 0, or by rank 2 and told
  EXPECT_LT(ending.after, kPrompt);
  EXPECT_TRUE(peers.EndsWithin(2, kPrompt));
  EXPECT_THAT(peers.LastWords(2), HasSubstr("lost the connection to rank 1"));
}

TEST_P(Processes, PeerKilledInTheMiddleOfAMessageIsNoticedAtOnce) {
  PeerProcesses peers(GetParam(), 3, "large");
  const Ending ending = RunUntilSignalled(peers, 3, "large", SIGKILL, kPatience);
  EXPECT_EQ(ending.status.code(), absl::StatusCode::kUnavailable) << ending.status;
  EXPECT_THAT(std::string(ending.status.message()), HasSubstr("lost the connection to rank 1"));
  EXPECT_LT(ending.after, kPrompt);
  EXPECT_TRUE(peers.EndsWithin(2, kPrompt));
}

// Two ranks: among more, one that waits for the stopped rank may be the first to be missed.
TEST_P(Processes, StoppedPeerIsNamedAtTheDeadline) {
  PeerProcesses peers(GetParam(), 2, "gather");
  const Ending ending = RunUntilSignalled(peers, 2, "gather", SIGSTOP, absl::Seconds(1));
  EXPECT_EQ(ending.status.code(), absl::StatusCode::kDeadlineExceeded) << ending.status;
  EXPECT_THAT(std::string(ending.status.message()), HasSubstr("AllGather: rank 1 did not answer within 1s"));
  EXPECT_LT(ending.after, absl::Seconds(1) + kPrompt);
}

TEST_P(Processes, AbortIsToldToPeers) {
  PeerProcesses peers(GetParam(), 3, "gather");
  auto group = JoinProcesses(GetParam(), 0, 3, peers.directory(), kPatience);
  ASSERT_TRUE(group.ok()) << group.status();
  ASSERT_EQ(Step(**group, "gather"), absl::OkStatus());
  absl::SleepFor(absl::Milliseconds(30));  // they wait for this rank
  (*group)->Abort(absl::CancelledError("epoch 7 is over"));
  for (int rank : {1, 2}) {
    EXPECT_TRUE(peers.EndsWithin(rank, kPrompt));
    EXPECT_THAT(peers.LastWords(rank), HasSubstr("UNAVAILABLE: "));
    EXPECT_THAT(peers.LastWords(rank), HasSubstr(absl::StrCat("rank ", rank, " of group 'processes', AllGather: ")));
    EXPECT_THAT(peers.LastWords(rank), HasSubstr("epoch 7 is over"));
  }
}

int NumFiles(const std::string& directory) {
  std::error_code error;
  int count = 0;
  for (std::filesystem::directory_iterator it(directory, error), end; it != end; it.increment(error)) ++count;
  return count;
}

// Others may use /dev/shm meanwhile, but not twenty times over.
TEST(ShmProcesses, LeaveNothingBehindWhenAllAreKilled) {
  constexpr int kGroups = 20;
  const int before = NumFiles("/dev/shm");
  for (int i = 0; i < kGroups; ++i) {
    PeerProcesses peers("shm", 2, "gather");
    auto group = JoinProcesses("shm", 0, 2, peers.directory(), kPatience);
    ASSERT_TRUE(group.ok()) << group.status();
    ASSERT_EQ(Step(**group, "gather"), absl::OkStatus());
    peers.Signal(1, SIGKILL);
    while (Step(**group, "gather").ok()) {
    }
  }
  EXPECT_LT(NumFiles("/dev/shm"), before + kGroups);
}

}  // namespace
}  // namespace plumbline

int main(int argc, char** argv) {
  if (argc == 7 && std::string(argv[1]) == "--peer") {
    return plumbline::RunPeer(argv[2], std::stoi(argv[3]), std::stoi(argv[4]), argv[5], argv[6]);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
