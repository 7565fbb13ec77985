// How long a collective of two ranks takes, as processes: over Gloo and over shared memory, turn about. Run as
// `communicator_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9`.
#include <benchmark/benchmark.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "parallel/communicator.h"

namespace plumbline {
namespace {

// Keys are files.
class DirectoryStore final : public RendezvousStore {
 public:
  explicit DirectoryStore(std::string directory) : directory_(std::move(directory)) {}
  absl::Status Set(const std::string& key, const std::string& value) override {
    std::ofstream(Path(key) + ".new") << value;
    std::filesystem::rename(Path(key) + ".new", Path(key));
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration) override {
    while (!std::filesystem::exists(Path(key))) absl::SleepFor(absl::Milliseconds(1));
    std::ifstream file(Path(key));
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

 private:
  std::string Path(std::string key) const {
    for (char& c : key) c = c == '/' ? '_' : c;
    return directory_ + "/" + key;
  }
  const std::string directory_;
};

enum class Call { kAllGather, kAllToAll };

struct Case {
  const char* name;
  ProcessTransport transport;
  Call call;
  int64_t num_bytes;  // of a rank's message to the other
};

absl::Status Exchange(Communicator& group, const Case& c, std::vector<uint8_t>& in, std::vector<uint8_t>& out) {
  const Tensor all(out.data(), DType::kU8, {static_cast<int64_t>(out.size())});
  const Tensor own(in.data(), DType::kU8, {static_cast<int64_t>(in.size())});
  return c.call == Call::kAllGather ? group.AllGather(all, own.Rows(0, c.num_bytes)) : group.AllToAll(all, own);
}

// One of the two; the one without a state goes on until the other ends the group.
void RunRank(const Case& c, int rank, const std::string& directory, benchmark::State* state) {
  DirectoryStore store(directory);
  auto group = ConnectProcesses({.rank = rank, .size = 2, .group = "bench", .bind_address = "127.0.0.1"}, c.transport,
                                store);
  if (!group.ok()) {
    if (state != nullptr) state->SkipWithError(group.status().ToString().c_str());
    return;
  }
  std::vector<uint8_t> in(2 * c.num_bytes, 1), out(2 * c.num_bytes);
  if (state == nullptr) {
    while (Exchange(**group, c, in, out).ok()) {
    }
    return;
  }
  for (int i = 0; i < 20; ++i) (void)Exchange(**group, c, in, out);
  for (auto _ : *state) {
    if (absl::Status status = Exchange(**group, c, in, out); !status.ok()) {
      state->SkipWithError(status.ToString().c_str());
      break;
    }
  }
  (*group)->Abort(absl::CancelledError("enough"));
}

// The peer is forked before this process has threads: Gloo's end with the group.
void RunCase(benchmark::State& state, const Case& c) {
  const std::string directory =
      (std::filesystem::temp_directory_path() /
       absl::StrCat("communicator_bench_", getpid(), "_", absl::GetCurrentTimeNanos()))
          .string();
  std::filesystem::create_directories(directory);
  const pid_t peer = fork();
  if (peer == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    RunRank(c, 1, directory, nullptr);
    _exit(0);
  }
  RunRank(c, 0, directory, &state);
  kill(peer, SIGKILL);
  waitpid(peer, nullptr, 0);
  std::filesystem::remove_all(directory);
}

void RegisterAll() {
  for (const auto& [call_name, call] : {std::pair{"AllGather", Call::kAllGather}, {"AllToAll", Call::kAllToAll}}) {
    for (const auto& [size_name, num_bytes] : {std::pair{"16KB", int64_t{16} << 10}, {"2MB", int64_t{2} << 20}}) {
      for (const auto& [name, transport] :
           {std::pair{"gloo", ProcessTransport::kGloo}, {"shm", ProcessTransport::kShm}}) {
        const Case c = {name, transport, call, num_bytes};
        benchmark::RegisterBenchmark(absl::StrCat(call_name, "/", size_name, "/", name).c_str(), RunCase, c)
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

}  // namespace
}  // namespace plumbline

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  plumbline::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
