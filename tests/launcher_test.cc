// The launcher: children are restarted within bounds, and none is left behind.
#include "coordinator/cluster/launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "coordinator/cluster/child_process.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

TEST(LauncherTest, AChildDiesWithTheThreadThatStartedItHoweverThatEnds) {
  absl::StatusOr<ChildProcess> child;
  std::thread([&] { child = StartChild({"/bin/sleep", "1000"}, ""); }).join();
  ASSERT_TRUE(child.ok()) << child.status();
  int status = 0;
  ASSERT_EQ(waitpid(child->pid, &status, 0), child->pid);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  close(child->stderr_fd);
}

TEST(LauncherTest, NoChildOutlivesTheLauncher) {
  auto launcher = Launcher::Start({.command = {"/bin/sh", "-c", "sleep 1000"}, .ranks = {0}});
  ASSERT_TRUE(launcher.ok()) << launcher.status();
  const pid_t pid = static_cast<pid_t>((*launcher)->pid(0));
  EXPECT_EQ(kill(pid, 0), 0);
  launcher->reset();
  EXPECT_EQ(kill(pid, 0), -1);
}

TEST(LauncherTest, AWorkerThatDiesAgainAndAgainIsGivenUp) {
  std::mutex mutex;
  std::condition_variable changed;
  absl::Status given_up;
  int num_lines = 0;
  auto launcher = Launcher::Start(
      {.command = {"/bin/sh", "-c", "echo broken >&2; exit 3"},
       .ranks = {0},
       .max_restarts_per_minute = 3,
       .on_line = [&](int, const std::string& line) { num_lines += line == "broken"; },
       .on_give_up =
           [&](absl::Status status) {
             std::lock_guard lock(mutex);
             given_up = status;
             changed.notify_all();
           }});
  ASSERT_TRUE(launcher.ok()) << launcher.status();
  std::unique_lock lock(mutex);
  ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(10), [&] { return !given_up.ok(); }));
  EXPECT_THAT(given_up.message(), HasSubstr("rank 0 ended with exit code 3: broken"));
  lock.unlock();
  (*launcher)->Stop(absl::ZeroDuration());
  EXPECT_EQ(num_lines, 4);  // the first life and three restarts
}

TEST(LauncherTest, AProgramThatIsNotThereIsTold) {
  const auto launcher = Launcher::Start({.command = {"/no/such/program"}, .ranks = {0, 1}});
  EXPECT_TRUE(absl::IsNotFound(launcher.status())) << launcher.status();
  EXPECT_THAT(launcher.status().message(), HasSubstr("/no/such/program"));
}

}  // namespace
}  // namespace plumbline
