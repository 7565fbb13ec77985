#include "coordinator/cluster/child_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace plumbline {
namespace {

constexpr size_t kMaxInputBytes = 4096;

struct Pipe {
  int read_end = -1;
  int write_end = -1;
};

absl::StatusOr<Pipe> OpenPipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot open a pipe: ", std::strerror(errno)));
  }
  return Pipe{ends[0], ends[1]};
}

// Between fork and exec, in a process that had many threads: async-signal-safe calls only.
[[noreturn]] void RunChild(char* const* argv, pid_t parent, int stdin_fd, int stderr_fd,
                           int error_fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it died before prctl
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  dup2(stdin_fd, STDIN_FILENO);
  dup2(stderr_fd, STDERR_FILENO);
  close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
  execv(argv[0], argv);
  const int error = errno;
  [[maybe_unused]] const ssize_t written = write(error_fd, &error, sizeof(error));
  _exit(127);
}

}  // namespace

absl::StatusOr<ChildProcess> StartChild(const std::vector<std::string>& command,
                                        const std::string& input) {
  PL_CHECK(!command.empty() && input.size() <= kMaxInputBytes);
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  std::vector<Pipe> pipes;  // the child's stdin, its stderr, and the error of exec
  for (int i = 0; i < 3; ++i) {
    absl::StatusOr<Pipe> opened = OpenPipe();
    if (!opened.ok()) {
      for (const Pipe& open : pipes) close(open.read_end), close(open.write_end);
      return opened.status();
    }
    pipes.push_back(*opened);
  }
  const auto [in, err, exec_error] = std::tuple(pipes[0], pipes[1], pipes[2]);
  const ssize_t filled = write(in.write_end, input.data(), input.size());
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) RunChild(argv.data(), parent, in.read_end, err.write_end, exec_error.write_end);
  const int fork_error = errno;
  for (int fd : {in.read_end, in.write_end, err.write_end, exec_error.write_end}) close(fd);

  int error = 0;
  if (pid < 0 || filled != static_cast<ssize_t>(input.size())) {
    error = pid < 0 ? fork_error : EIO;
  } else if (read(exec_error.read_end, &error, sizeof(error)) <= 0) {
    error = 0;  // closed by exec
  }
  close(exec_error.read_end);
  if (error != 0) {
    close(err.read_end);
    const std::string message =
        absl::StrCat("cannot start ", command[0], ": ", std::strerror(error));
    return error == ENOENT || error == EACCES ? absl::NotFoundError(message)
                                              : absl::InternalError(message);
  }
  fcntl(err.read_end, F_SETFL, O_NONBLOCK);
  return ChildProcess{.pid = pid, .stderr_fd = err.read_end};
}

}  // namespace plumbline
