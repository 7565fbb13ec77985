// Ranks as processes: killed, stopped, far away. Run as `communicator_process_test --peer TRANSPORT RANK SIZE DIRECTORY TASK`
// this program is one rank of a group.
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

namespace plumbline {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<uint8_t>;

constexpr absl::Duration kPatience = absl::Seconds(30);  // a deadline that no test should reach
constexpr absl::Duration kPrompt = absl::Seconds(2);     // "at once" on a machine that is busy with other things

Tensor View(Bytes& bytes) { return Tensor(bytes.data(), DType::kU8, {static_cast<int64_t>(bytes.size())}); }

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

absl::StatusOr<std::unique_ptr<Communicator>> JoinProcesses(int rank, int size, const std::string& directory,
                                                            absl::Duration timeout) {
  DirectoryStore store(directory);
  return ConnectGloo(
      {.rank = rank, .size = size, .group = "processes", .bind_address = "127.0.0.1", .timeout = timeout}, store);
}

// What a process repeats until something ends it.
absl::Status Step(Communicator& group, const std::string& task) {
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

int RunPeer(int rank, int size, const std::string& directory, const std::string& task) {
  auto group = JoinProcesses(rank, size, directory, absl::Seconds(10));
  if (!group.ok()) return 2;
  while (Step(**group, task).ok()) {
  }
  return 0;
}

// Ranks 1 .. size - 1 as processes of this program; ended with the object.
class PeerProcesses {
 public:
  PeerProcesses(int size, const std::string& task)
      : directory_(testing::TempDir() + absl::StrCat("/peers_", getpid(), "_", absl::GetCurrentTimeNanos())) {
    std::filesystem::create_directories(directory_);
    for (int rank = 1; rank < size; ++rank) {
      const std::vector<std::string> words = {"communicator_test", "--peer",   std::to_string(rank),
                                              std::to_string(size), directory_, task};
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

Ending RunUntilSignalled(PeerProcesses& peers, int size, const std::string& task, int signal, absl::Duration timeout) {
  auto group = JoinProcesses(0, size, peers.directory(), timeout);
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

TEST(GlooProcesses, KilledPeerIsNamedAtOnceByAll) {
  PeerProcesses peers(3, "gather");
  const Ending ending = RunUntilSignalled(peers, 3, "gather", SIGKILL, kPatience);
  EXPECT_EQ(ending.status.code(), absl::StatusCode::kUnavailable) << ending.status;
  EXPECT_THAT(std::string(ending.status.message()),
              HasSubstr("lost the connection to rank 1"));  // seen by rank 0, or by rank 2 and told
  EXPECT_LT(ending.after, kPrompt);
  EXPECT_TRUE(peers.EndsWithin(2, kPrompt));
}

TEST(GlooProcesses, PeerKilledInTheMiddleOfAMessageIsNoticedAtOnce) {
  PeerProcesses peers(3, "large");
  const Ending ending = RunUntilSignalled(peers, 3, "large", SIGKILL, kPatience);
  EXPECT_EQ(ending.status.code(), absl::StatusCode::kUnavailable) << ending.status;
  EXPECT_THAT(std::string(ending.status.message()), HasSubstr("lost the connection to rank 1"));
  EXPECT_LT(ending.after, kPrompt);
  EXPECT_TRUE(peers.EndsWithin(2, kPrompt));
}

// Two ranks: among more, one that waits for the stopped rank may be the first to be missed.
TEST(GlooProcesses, StoppedPeerIsNamedAtTheDeadline) {
  PeerProcesses peers(2, "gather");
  const Ending ending = RunUntilSignalled(peers, 2, "gather", SIGSTOP, absl::Seconds(1));
  EXPECT_EQ(ending.status.code(), absl::StatusCode::kDeadlineExceeded) << ending.status;
  EXPECT_THAT(std::string(ending.status.message()), HasSubstr("AllGather: rank 1 did not answer within 1s"));
  EXPECT_LT(ending.after, absl::Seconds(1) + kPrompt);
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
