#include "coordinator/cluster/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <future>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/cluster/child_process.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr absl::Duration kFirstBackoff = absl::Milliseconds(50);
// After which a death has nothing to do with the one before; how often that may happen, max_restarts_per_minute says.
constexpr absl::Duration kHealthyLife = absl::Seconds(1);
constexpr size_t kMaxLineBytes = 16 << 10;
constexpr int kUsageExitCode = 2;

std::string Describe(int wait_status) {
  if (WIFSIGNALED(wait_status)) return absl::StrCat("was killed by signal ", WTERMSIG(wait_status));
  return absl::StrCat("ended with exit code ", WEXITSTATUS(wait_status));
}

// With whatever it has started: a grandchild would hold on to the pipe.
void KillGroup(int64_t pid) { kill(static_cast<pid_t>(-pid), SIGKILL); }

// One thread starts, watches and restarts the children: they die with the thread that started them.
class LauncherImpl final : public Launcher {
 public:
  explicit LauncherImpl(LauncherOptions options) : options_(std::move(options)) {
    for (int rank : options_.ranks) children_.push_back({.rank = rank});
  }

  ~LauncherImpl() override {
    Stop(absl::ZeroDuration());
    close(wake_fd_);
  }

  absl::Status Begin() {
    wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    std::promise<absl::Status> started;
    thread_ = std::thread([this, &started] {
      const absl::Status status = StartAll();
      const bool ok = status.ok();
      started.set_value(status);
      if (ok) Watch();
    });
    return started.get_future().get();
  }

  void Stop(absl::Duration patience) override {
    {
      std::lock_guard lock(mutex_);
      if (!stopping_) kill_at_ = absl::Now() + patience;
      stopping_ = true;
    }
    Wake();
    if (thread_.joinable()) thread_.join();
  }

  void Kill(int rank, int64_t pid) override {
    std::lock_guard lock(mutex_);
    for (const Child& child : children_) {
      if (child.rank == rank && child.process.pid == pid && pid > 0) KillGroup(pid);
    }
  }

  int64_t pid(int rank) const override {
    std::lock_guard lock(mutex_);
    for (const Child& child : children_) {
      if (child.rank == rank) return child.process.pid;
    }
    return -1;
  }

 private:
  struct Child {
    int rank = 0;
    ChildProcess process;
    std::string line;  // not yet ended
    std::string last_line;
    absl::Time started_at;
    absl::Duration backoff = absl::ZeroDuration();
    absl::Time restart_at = absl::InfiniteFuture();  // while it does not run
  };

  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
  }

  absl::Status StartAll() {
    for (Child& child : children_) {
      if (absl::Status status = StartOne(child); !status.ok()) {
        KillAll();
        for (Child& other : children_) {
          if (other.process.pid > 0) Reap(other);
        }
        return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status StartOne(Child& child) {
    std::vector<std::string> command = options_.command;
    command.push_back("--rank");
    command.push_back(absl::StrCat(child.rank));
    PL_ASSIGN_OR_RETURN(const ChildProcess process,
                        StartChild(command, absl::StrCat(options_.join_token, "\n")));
    std::lock_guard lock(mutex_);
    child.process = process;
    child.started_at = absl::Now();
    child.restart_at = absl::InfiniteFuture();
    return absl::OkStatus();
  }

  void Watch() {
    while (true) {
      absl::Time next = absl::InfiniteFuture();
      const bool stopping = IsStopping();
      std::vector<pollfd> fds = {{.fd = wake_fd_, .events = POLLIN}};
      std::vector<Child*> polled = {nullptr};
      for (Child& child : children_) {
        if (child.process.pid > 0) {
          fds.push_back({.fd = child.process.stderr_fd, .events = POLLIN});
          polled.push_back(&child);
        } else if (!stopping) {
          next = std::min(next, child.restart_at);
        }
      }
      if (stopping && polled.size() == 1) return;
      poll(fds.data(), fds.size(), TimeoutMs(stopping ? KillTime() : next));
      uint64_t ignored;
      [[maybe_unused]] const ssize_t drained = read(wake_fd_, &ignored, sizeof(ignored));
      for (size_t i = 1; i < fds.size(); ++i) {
        if (fds[i].revents != 0 && !Forward(*polled[i])) HandleEnd(*polled[i]);
      }
      if (IsStopping()) {
        if (absl::Now() >= KillTime()) KillAll();
      } else {
        RestartDue();
      }
    }
  }

  static int TimeoutMs(absl::Time when) {
    if (when == absl::InfiniteFuture()) return -1;
    const absl::Duration left = when - absl::Now();
    return left <= absl::ZeroDuration() ? 0 : static_cast<int>(absl::ToInt64Milliseconds(left)) + 1;
  }

  bool IsStopping() const {
    std::lock_guard lock(mutex_);
    return stopping_;
  }

  absl::Time KillTime() const {
    std::lock_guard lock(mutex_);
    return kill_at_;
  }

  // False when the child has closed its stderr, which is when it ends.
  bool Forward(Child& child) {
    char buffer[4096];
    while (true) {
      const ssize_t count = read(child.process.stderr_fd, buffer, sizeof(buffer));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
      if (count == 0) return false;
      for (ssize_t i = 0; i < count; ++i) {
        if (buffer[i] == '\n') {
          EndLine(child);
        } else if (child.line.size() < kMaxLineBytes) {
          child.line.push_back(buffer[i]);
        }
      }
    }
  }

  void EndLine(Child& child) {
    if (options_.on_line) options_.on_line(child.rank, child.line);
    child.last_line = std::move(child.line);
    child.line.clear();
  }

  // Returns the wait status.
  int Reap(Child& child) {
    KillGroup(child.process.pid);  // it may have closed its stderr and live on
    int status = 0;
    while (waitpid(child.process.pid, &status, 0) < 0 && errno == EINTR) {
    }
    close(child.process.stderr_fd);
    std::lock_guard lock(mutex_);
    child.process = {};
    return status;
  }

  void HandleEnd(Child& child) {
    if (!child.line.empty()) EndLine(child);
    const int status = Reap(child);
    if (IsStopping()) return;
    const absl::Time now = absl::Now();
    const std::string what = absl::StrCat("rank ", child.rank, " ", Describe(status),
                                          child.last_line.empty() ? "" : ": ", child.last_line);
    if (WIFEXITED(status) && WEXITSTATUS(status) == kUsageExitCode) return GiveUp(what);
    while (!restarts_.empty() && now - restarts_.front() > absl::Minutes(1)) restarts_.pop_front();
    if (static_cast<int>(restarts_.size()) >= options_.max_restarts_per_minute) {
      return GiveUp(
          absl::StrCat(restarts_.size(), " restarts of workers within a minute; the last: ", what));
    }
    restarts_.push_back(now);
    // The first restart is immediate; one that dies again at once waits longer each time.
    if (now - child.started_at > kHealthyLife) child.backoff = absl::ZeroDuration();
    child.restart_at = now + child.backoff;
    child.backoff = std::clamp(child.backoff * 2, kFirstBackoff, options_.max_backoff);
  }

  void RestartDue() {
    for (Child& child : children_) {
      if (child.process.pid > 0 || given_up_ || absl::Now() < child.restart_at) continue;
      if (absl::Status status = StartOne(child); !status.ok())
        GiveUp(std::string(status.message()));
    }
  }

  void GiveUp(const std::string& reason) {
    for (Child& child : children_) child.restart_at = absl::InfiniteFuture();
    if (given_up_) return;
    given_up_ = true;
    if (options_.on_give_up) options_.on_give_up(absl::UnavailableError(reason));
  }

  void KillAll() {
    std::lock_guard lock(mutex_);
    for (const Child& child : children_) {
      if (child.process.pid > 0) KillGroup(child.process.pid);
    }
    kill_at_ = absl::InfiniteFuture();
  }

  const LauncherOptions options_;
  int wake_fd_ = -1;
  std::thread thread_;

  // Of the thread.
  std::deque<absl::Time> restarts_;
  bool given_up_ = false;

  mutable std::mutex mutex_;
  std::vector<Child> children_;  // of the thread, but for `process`
  bool stopping_ = false;
  absl::Time kill_at_ = absl::InfiniteFuture();
};

}  // namespace

absl::StatusOr<std::unique_ptr<Launcher>> Launcher::Start(LauncherOptions options) {
  auto launcher = std::make_unique<LauncherImpl>(std::move(options));
  PL_RETURN_IF_ERROR(launcher->Begin());
  return launcher;
}

std::vector<std::string> WorkerCommand(const std::string& worker_address, int num_threads,
                                       const TlsFiles& tls) {
  char program[4096];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof(program));
  std::vector<std::string> command = {length > 0 ? std::string(program, length) : "/proc/self/exe",
                                      "worker",
                                      "--coordinator",
                                      worker_address,
                                      "--join-token-file",
                                      "-",
                                      "--threads",
                                      absl::StrCat(num_threads)};
  if (tls.has_any()) {
    command.insert(command.end(), {"--cluster-cert", tls.certificate, "--cluster-key", tls.key,
                                   "--cluster-ca", tls.ca});
  }
  return command;
}

}  // namespace plumbline
