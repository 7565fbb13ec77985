// Ranks are threads of one process. A collective call is: leave a pointer to one's input, wait for all, copy from the
// others' inputs, wait until all have copied. Only the first wait can fail; the second lasts as long as a copy, and not
// leaving early is what keeps an input alive while another rank reads it.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "parallel/communicator.h"

namespace plumbline {
namespace {

using Clock = std::chrono::steady_clock;

// What a rank brings to a collective call.
struct Post {
  const char* operation = nullptr;
  const std::byte* data = nullptr;
  size_t num_bytes = 0;
};

// One direction between two ranks. The receiver copies; the sender waits until it has.
struct Channel {
  enum State { kEmpty, kOffered, kTaking, kTaken };
  std::condition_variable changed;
  State state = kEmpty;
  Post post;
};

class LocalGroup {
 public:
  LocalGroup(int size, absl::Duration timeout)
      : size_(size), timeout_(absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24)))),
        posts_(size), arrived_(size), left_(size), channels_(size * size) {}

  int size() const { return size_; }

  // Runs copy(posts of all ranks) on every rank once all have arrived.
  template <typename Copy>
  absl::Status Collective(int rank, Post post, const Copy& copy) {
    if (absl::Status status = Arrive(rank, post); !status.ok()) return status;
    copy(posts_);
    return FinishReading();
  }

  absl::Status Send(int rank, int peer, Post post) {
    Channel& channel = channels_[rank * size_ + peer];
    std::unique_lock lock(mutex_);
    if (!status_.ok()) return status_;
    channel.post = post;
    channel.state = Channel::kOffered;
    channel.changed.notify_all();
    const auto deadline = Clock::now() + timeout_;
    // Once the receiver is copying, the data must stay: only an offer can be withdrawn.
    while (channel.state == Channel::kTaking || (channel.state == Channel::kOffered && status_.ok())) {
      if (channel.state == Channel::kTaking) {
        channel.changed.wait(lock);
      } else {
        WaitForPeer(lock, channel, {.rank = rank, .peer = peer, .operation = "Send", .deadline = deadline});
      }
    }
    const bool taken = channel.state == Channel::kTaken;
    channel.state = Channel::kEmpty;
    return taken ? absl::OkStatus() : status_;
  }

  absl::Status Recv(int rank, int peer, Tensor data) {
    Channel& channel = channels_[peer * size_ + rank];
    std::unique_lock lock(mutex_);
    const auto deadline = Clock::now() + timeout_;
    while (channel.state != Channel::kOffered && status_.ok()) {
      WaitForPeer(lock, channel, {.rank = rank, .peer = peer, .operation = "Recv", .deadline = deadline});
    }
    if (!status_.ok()) return status_;
    PL_CHECK_MSG(channel.post.num_bytes == data.num_bytes(), "Send and Recv differ in size");
    channel.state = Channel::kTaking;
    lock.unlock();
    if (data.num_bytes() > 0) std::memcpy(data.raw(), channel.post.data, data.num_bytes());
    lock.lock();
    channel.state = Channel::kTaken;
    channel.changed.notify_all();
    return absl::OkStatus();
  }

  absl::Status Health() const {
    std::lock_guard lock(mutex_);
    return status_;
  }

  void Abort(absl::Status reason) {
    PL_CHECK_MSG(!reason.ok(), "Abort needs a reason");
    std::lock_guard lock(mutex_);
    Fail(std::move(reason));
  }

  // The rank takes part in no further call; whoever still waits for it learns so.
  void Leave(int rank) {
    std::lock_guard lock(mutex_);
    left_[rank] = true;
    WakeAll();
  }

 private:
  struct Wait {
    int rank;
    int peer;
    const char* operation;
    Clock::time_point deadline;
  };

  absl::Status Arrive(int rank, Post post) {
    std::unique_lock lock(mutex_);
    if (!status_.ok()) return status_;
    posts_[rank] = post;
    arrived_[rank] = true;
    if (++num_arrived_ == size_) {
      for (const Post& other : posts_) {
        PL_CHECK_MSG(std::strcmp(other.operation, post.operation) == 0 && other.num_bytes == post.num_bytes,
                     "the ranks of a group called different operations or sizes");
      }
      num_arrived_ = 0;
      std::fill(arrived_.begin(), arrived_.end(), false);
      num_reading_ = size_;
      ++round_;
      changed_.notify_all();
      return absl::OkStatus();
    }
    const uint64_t round = round_;
    const auto deadline = Clock::now() + timeout_;
    while (round_ == round) {
      if (!status_.ok()) return status_;
      if (std::string left = Ranks([&](int r) { return left_[r]; }); !left.empty()) {
        Fail(absl::UnavailableError(Describe(rank, post.operation, absl::StrCat(left, " left the group"))));
      } else if (changed_.wait_until(lock, deadline) == std::cv_status::timeout && round_ == round && status_.ok()) {
        const std::string missing = Ranks([&](int r) { return !arrived_[r]; });
        Fail(absl::DeadlineExceededError(
            Describe(rank, post.operation, absl::StrCat(missing, " did not arrive within ", Timeout()))));
      }
    }
    return absl::OkStatus();
  }

  absl::Status FinishReading() {
    std::unique_lock lock(mutex_);
    if (--num_reading_ == 0) {
      changed_.notify_all();
    } else {
      // No rank can begin the next round before this one has left, so 0 is not missed.
      changed_.wait(lock, [&] { return num_reading_ == 0; });
    }
    return status_;
  }

  // One step of waiting for the other end of a channel; fails the group when it has left or the deadline has passed.
  void WaitForPeer(std::unique_lock<std::mutex>& lock, Channel& channel, const Wait& wait) {
    const Channel::State state = channel.state;
    if (left_[wait.peer]) {
      Fail(absl::UnavailableError(
          Describe(wait.rank, wait.operation, absl::StrCat("rank ", wait.peer, " left the group"))));
    } else if (channel.changed.wait_until(lock, wait.deadline) == std::cv_status::timeout &&
               channel.state == state && status_.ok()) {
      Fail(absl::DeadlineExceededError(Describe(
          wait.rank, wait.operation, absl::StrCat("rank ", wait.peer, " did not answer within ", Timeout()))));
    }
  }

  void Fail(absl::Status reason) {
    if (!status_.ok()) return;
    status_ = std::move(reason);
    WakeAll();
  }

  void WakeAll() {
    changed_.notify_all();
    for (Channel& channel : channels_) channel.changed.notify_all();
  }

  template <typename Chosen>
  std::string Ranks(const Chosen& chosen) const {
    std::vector<int> ranks;
    for (int r = 0; r < size_; ++r) {
      if (chosen(r)) ranks.push_back(r);
    }
    return ranks.empty() ? "" : absl::StrCat("rank ", absl::StrJoin(ranks, ", "));
  }

  std::string Timeout() const { return absl::FormatDuration(absl::FromChrono(timeout_)); }
  std::string Describe(int rank, const char* operation, const std::string& what) const {
    return absl::StrCat("rank ", rank, " of ", size_, ", ", operation, ": ", what);
  }

  const int size_;
  const std::chrono::nanoseconds timeout_;
  mutable std::mutex mutex_;
  absl::Status status_;
  std::condition_variable changed_;  // round_, num_reading_, status_, left_
  std::vector<Post> posts_;          // written before a round begins, read during it
  std::vector<bool> arrived_;
  std::vector<bool> left_;
  int num_arrived_ = 0;
  int num_reading_ = 0;
  uint64_t round_ = 0;
  std::vector<Channel> channels_;  // [from * size + to]
};

const std::byte* BytesOf(ConstTensor tensor) { return static_cast<const std::byte*>(tensor.raw()); }

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalGroup> group, int rank) : group_(std::move(group)), rank_(rank) {}
  ~LocalCommunicator() override { group_->Leave(rank_); }

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  absl::Status AllGather(Tensor out, ConstTensor in) override {
    const size_t slice = in.num_bytes();
    PL_CHECK(out.num_bytes() == slice * size());
    return group_->Collective(rank_, {"AllGather", BytesOf(in), slice}, [&](const std::vector<Post>& posts) {
      for (int r = 0; r < size(); ++r) Copy(Slice(out, r, slice), posts[r].data, slice);
    });
  }

  absl::Status AllToAll(Tensor out, ConstTensor in) override {
    const size_t slice = in.num_bytes() / size();
    PL_CHECK(in.num_bytes() == slice * size() && out.num_bytes() == in.num_bytes());
    return group_->Collective(rank_, {"AllToAll", BytesOf(in), slice}, [&](const std::vector<Post>& posts) {
      for (int r = 0; r < size(); ++r) Copy(Slice(out, r, slice), posts[r].data + rank_ * slice, slice);
    });
  }

  absl::Status Broadcast(Tensor data, int root) override {
    PL_CHECK(root >= 0 && root < size());
    const size_t num_bytes = data.num_bytes();
    return group_->Collective(rank_, {"Broadcast", BytesOf(data), num_bytes}, [&](const std::vector<Post>& posts) {
      Copy(Slice(data, 0, num_bytes), posts[root].data, num_bytes);
    });
  }

  absl::Status Send(ConstTensor data, int peer) override {
    PL_CHECK(peer >= 0 && peer < size() && peer != rank_);
    return group_->Send(rank_, peer, {"Send", BytesOf(data), data.num_bytes()});
  }

  absl::Status Recv(Tensor data, int peer) override {
    PL_CHECK(peer >= 0 && peer < size() && peer != rank_);
    return group_->Recv(rank_, peer, data);
  }

  absl::Status Health() const override { return group_->Health(); }
  void Abort(absl::Status reason) override { group_->Abort(std::move(reason)); }

 private:
  static std::byte* Slice(Tensor tensor, int index, size_t num_bytes) {
    return static_cast<std::byte*>(tensor.raw()) + index * num_bytes;
  }
  // Nothing to do where the input already lies in its place of the output.
  static void Copy(std::byte* to, const std::byte* from, size_t num_bytes) {
    if (to != from && num_bytes > 0) std::memcpy(to, from, num_bytes);
  }

  const std::shared_ptr<LocalGroup> group_;
  const int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLocalGroup(int size, absl::Duration timeout) {
  PL_CHECK(size >= 1);
  auto group = std::make_shared<LocalGroup>(size, timeout);
  std::vector<std::unique_ptr<Communicator>> members;
  for (int rank = 0; rank < size; ++rank) members.push_back(std::make_unique<LocalCommunicator>(group, rank));
  return members;
}

}  // namespace plumbline
