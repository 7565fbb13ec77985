// Ranks are processes; host memory over TCP through Gloo's transport layer. Every call is a set of transfers, one unbound
// buffer each. Three things Gloo does not do by itself:
// - A connection that is lost wakes the transfers that wait for it, but not one whose bytes are on their way. So one more
//   receive per peer, the presence, stays posted for the life of the group, and a thread waits for it: a peer that leaves
//   in good order completes it with a goodbye, one that dies breaks it, which ends the group at once.
// - A rank that ends the group tells the others why before it closes, so that all name one cause.
// - A wait that times out closes all connections on the spot; so waits have no limit, and a thread keeps the deadlines.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gloo/transport/unbound_buffer.h"
#include "parallel/communicator.h"
#include "parallel/gloo_links.h"
#include "parallel/group_errors.h"

namespace plumbline {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using UnboundBuffer = gloo::transport::UnboundBuffer;

constexpr uint64_t kDataSlot = 1;
constexpr uint64_t kPresenceSlot = 2;
constexpr uint64_t kCauseSlot = 3;
constexpr uint64_t kProbeSlot = 4;
constexpr char kGoodbye = 1;
constexpr size_t kCauseBytes = 512;
constexpr milliseconds kLastWordsTime(200);
constexpr milliseconds kForEver = std::chrono::hours(24 * 365);

enum class Way { kSend, kRecv };

struct Transfer {
  Way way;
  int peer;
  void* data;
  size_t num_bytes;
};

std::byte* Slice(Tensor tensor, int index, size_t num_bytes) {
  return static_cast<std::byte*>(tensor.raw()) + index * num_bytes;
}
// Gloo has one buffer type for both ways; it only reads what is sent.
std::byte* Slice(ConstTensor tensor, int index, size_t num_bytes) {
  return static_cast<std::byte*>(const_cast<void*>(tensor.raw())) + index * num_bytes;
}

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(const GroupMember& member, GlooLinks links)
      : member_(member), links_(std::move(links)), presence_bytes_(member.size),
        presence_(links_.context->createUnboundBuffer(presence_bytes_.data(), presence_bytes_.size())),
        cause_bytes_(member.size, std::string(kCauseBytes, '\0')), causes_(MakeCauses()),
        watcher_([this] { WatchPeers(); }), timer_([this] { KeepDeadline(); }) {}

  ~GlooCommunicator() override {
    // Without a goodbye, a peer that is slower to finish the group's last call would take our leaving for a death.
    if (Health().ok()) Tell(kPresenceSlot, std::string(1, kGoodbye));
    {
      std::lock_guard lock(mutex_);
      if (status_.ok()) status_ = absl::CancelledError(NameOf(member_) + " has left");
      ended_.notify_all();
    }
    presence_->abortWaitRecv();
    watcher_.join();
    timer_.join();
  }

  int rank() const override { return member_.rank; }
  int size() const override { return member_.size; }

  absl::Status AllGather(Tensor out, ConstTensor in) override {
    const size_t slice = in.num_bytes();
    PL_CHECK(out.num_bytes() == slice * size());
    CopyOwn(Slice(out, rank(), slice), Slice(in, 0, slice), slice);
    return ExchangeWithAll("AllGather", slice, [&](int peer) { return Slice(out, peer, slice); },
                           [&](int) { return Slice(in, 0, slice); });
  }

  absl::Status AllToAll(Tensor out, ConstTensor in) override {
    const size_t slice = in.num_bytes() / size();
    PL_CHECK(in.num_bytes() == slice * size() && out.num_bytes() == in.num_bytes());
    CopyOwn(Slice(out, rank(), slice), Slice(in, rank(), slice), slice);
    return ExchangeWithAll("AllToAll", slice, [&](int peer) { return Slice(out, peer, slice); },
                           [&](int peer) { return Slice(in, peer, slice); });
  }

  absl::Status Broadcast(Tensor data, int root) override {
    PL_CHECK(root >= 0 && root < size());
    if (root != rank()) return Exchange("Broadcast", {{Way::kRecv, root, data.raw(), data.num_bytes()}});
    std::vector<Transfer> transfers;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer != root) transfers.push_back({Way::kSend, peer, data.raw(), data.num_bytes()});
    }
    return Exchange("Broadcast", transfers);
  }

  absl::Status Send(ConstTensor data, int peer) override {
    PL_CHECK(peer >= 0 && peer < size() && peer != rank());
    return Exchange("Send", {{Way::kSend, peer, Slice(data, 0, 0), data.num_bytes()}});
  }

  absl::Status Recv(Tensor data, int peer) override {
    PL_CHECK(peer >= 0 && peer < size() && peer != rank());
    return Exchange("Recv", {{Way::kRecv, peer, data.raw(), data.num_bytes()}});
  }

  absl::Status Health() const override {
    std::lock_guard lock(mutex_);
    return status_;
  }

  void Abort(absl::Status reason) override {
    PL_CHECK_MSG(!reason.ok(), "Abort needs a reason");
    const std::string cause = reason.ToString();
    End(std::move(reason), cause);
  }

 private:
  // The call under way, shared with whoever ends the group meanwhile.
  struct Call {
    const char* operation;
    Clock::time_point deadline;
    std::vector<std::unique_ptr<UnboundBuffer>> buffers;  // one per transfer
    std::atomic<int> peer = -1;                           // whose transfer is being waited for
  };

  std::vector<std::unique_ptr<UnboundBuffer>> MakeCauses() {
    std::vector<std::unique_ptr<UnboundBuffer>> causes;
    for (std::string& bytes : cause_bytes_) {
      causes.push_back(links_.context->createUnboundBuffer(bytes.data(), bytes.size()));
    }
    return causes;
  }

  static void CopyOwn(std::byte* to, const std::byte* from, size_t num_bytes) {
    if (to != from && num_bytes > 0) std::memcpy(to, from, num_bytes);
  }

  template <typename Into, typename From>
  absl::Status ExchangeWithAll(const char* operation, size_t num_bytes, const Into& into, const From& from) {
    std::vector<Transfer> transfers;
    transfers.reserve(2 * size());
    // Each rank begins with its right neighbour, so that not all press on rank 0 first.
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + size() - step) % size();
      transfers.push_back({Way::kRecv, peer, into(peer), num_bytes});
    }
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + step) % size();
      transfers.push_back({Way::kSend, peer, from(peer), num_bytes});
    }
    return Exchange(operation, transfers);
  }

  absl::Status Exchange(const char* operation, const std::vector<Transfer>& transfers) {
    Call call = {operation, Clock::now() + GlooMilliseconds(member_.timeout)};
    for (const Transfer& transfer : transfers) {
      call.buffers.push_back(links_.context->createUnboundBuffer(transfer.data, transfer.num_bytes));
    }
    {
      std::lock_guard lock(mutex_);
      if (!status_.ok()) return status_;
      call_ = &call;
    }
    Run(transfers, call);
    std::lock_guard lock(mutex_);
    call_ = nullptr;
    return status_;
  }

  // Failures are left in status_.
  void Run(const std::vector<Transfer>& transfers, Call& call) {
    try {
      for (size_t i = 0; i < transfers.size(); ++i) {
        const Transfer& transfer = transfers[i];
        call.peer = transfer.peer;
        if (transfer.num_bytes == 0) continue;
        if (transfer.way == Way::kRecv) {
          call.buffers[i]->recv(transfer.peer, kDataSlot);
        } else {
          call.buffers[i]->send(transfer.peer, kDataSlot);
        }
      }
      for (size_t i = 0; i < transfers.size(); ++i) {
        const Transfer& transfer = transfers[i];
        call.peer = transfer.peer;
        if (transfer.num_bytes == 0) continue;
        UnboundBuffer& buffer = *call.buffers[i];
        const bool done = transfer.way == Way::kRecv ? buffer.waitRecv(kForEver) : buffer.waitSend(kForEver);
        if (!done) return;  // the group was ended meanwhile
      }
    } catch (const std::exception& error) {
      EndBy(error.what());
    }
  }

  void WatchPeers() {
    try {
      for (int peer = 0; peer < size(); ++peer) {
        if (peer == rank()) continue;
        causes_[peer]->recv(peer, kCauseSlot);
        presence_->recv(peer, kPresenceSlot, peer, 1);
      }
      for (int left = 1; left < size(); ++left) {
        if (!presence_->waitRecv(kForEver)) return;
      }
    } catch (const std::exception& error) {
      EndBy(error.what());
    }
  }

  // A call that begins while this sleeps has its deadline after the end of the sleep, so none is missed.
  void KeepDeadline() {
    const milliseconds timeout = GlooMilliseconds(member_.timeout);
    std::unique_lock lock(mutex_);
    while (status_.ok()) {
      ended_.wait_until(lock, call_ != nullptr ? call_->deadline : Clock::now() + timeout);
      if (!status_.ok() || call_ == nullptr || Clock::now() < call_->deadline) continue;
      const std::string cause =
          absl::StrCat(NameOf(member_), ", ", call_->operation, ": ", DidNotAnswer(member_, call_->peer.load()));
      lock.unlock();
      End(absl::DeadlineExceededError(cause), cause);
      lock.lock();
    }
  }

  // Ends the group because gloo threw `error`: finds out whose fault it is.
  void EndBy(const std::string& error) {
    std::string where = NameOf(member_);
    {
      std::lock_guard lock(mutex_);
      if (!status_.ok()) return;
      if (call_ != nullptr) absl::StrAppend(&where, ", ", call_->operation);
    }
    const Fault fault = FindFault();
    if (!fault.told.empty()) {
      End(absl::UnavailableError(absl::StrCat(where, ": ", EndedByAnother(fault.told))), fault.told);
    } else {
      const std::string cause = absl::StrCat(where, ": ", fault.seen, " (", error, ")");
      End(absl::UnavailableError(cause), cause);
    }
  }

  struct Fault {
    std::string told;  // by a peer that ended the group
    std::string seen;  // by this rank
  };

  // A pair that has failed throws on every later call; what its peer sent before is complete by then.
  Fault FindFault() {
    Fault fault = {.seen = "a transfer failed"};
    bool dead = false;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) continue;
      try {
        presence_->recv(peer, kProbeSlot, peer, 1);
        continue;
      } catch (const std::exception&) {
      }
      try {
        if (causes_[peer]->waitRecv(milliseconds(1))) fault.told = cause_bytes_[peer].c_str();
      } catch (const std::exception&) {  // it said nothing
        if (presence_bytes_[peer] != kGoodbye) {
          fault.seen = absl::StrCat("lost the connection to rank ", peer);
          dead = true;
        } else if (!dead) {
          fault.seen = absl::StrCat("rank ", peer, " has left the group");
        }
      }
    }
    return fault;
  }

  // The first reason stays. `cause` is what the other ranks are told.
  void End(absl::Status reason, std::string cause) {
    {
      std::lock_guard lock(mutex_);
      if (!status_.ok()) return;
      status_ = std::move(reason);
      ended_.notify_all();
      if (call_ != nullptr) {
        for (auto& buffer : call_->buffers) {
          buffer->abortWaitRecv();
          buffer->abortWaitSend();
        }
      }
    }
    cause.resize(kCauseBytes - 1);
    cause.push_back('\0');
    Tell(kCauseSlot, std::move(cause));
    // Pair::close() would reset the connection and lose the words just sent; a wait that times out closes it in order.
    char unused = 0;
    try {
      links_.context->createUnboundBuffer(&unused, 1)->waitRecv(milliseconds(1));
    } catch (const std::exception&) {
    }
  }

  // Sends last words to every peer that still listens.
  void Tell(uint64_t slot, std::string words) {
    auto buffer = links_.context->createUnboundBuffer(words.data(), words.size());
    const auto deadline = Clock::now() + std::min(kLastWordsTime, GlooMilliseconds(member_.timeout));
    int num_sent = 0;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) continue;
      try {
        buffer->send(peer, slot);
        ++num_sent;
      } catch (const std::exception&) {  // it has left before us
      }
    }
    try {
      while (num_sent-- > 0) {
        buffer->waitSend(std::max(milliseconds(1), std::chrono::ceil<milliseconds>(deadline - Clock::now())));
      }
    } catch (const std::exception&) {  // it hangs, or has just left
    }
  }

  const GroupMember member_;
  GlooLinks links_;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  absl::Status status_;
  Call* call_ = nullptr;
  std::vector<char> presence_bytes_;  // [size]: kGoodbye once that peer has left
  std::unique_ptr<UnboundBuffer> presence_;
  std::vector<std::string> cause_bytes_;  // [size]: why that peer ended the group
  std::vector<std::unique_ptr<UnboundBuffer>> causes_;
  std::thread watcher_;
  std::thread timer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> ConnectGloo(const GroupMember& member, RendezvousStore& store) {
  PL_CHECK(member.size >= 1 && member.rank >= 0 && member.rank < member.size);
  if (member.size == 1) return std::move(MakeLocalGroup(1, member.timeout)[0]);
  // Gloo writes to sockets without MSG_NOSIGNAL: a dead peer must not end this process.
  std::signal(SIGPIPE, SIG_IGN);
  absl::StatusOr<GlooLinks> links = ConnectGlooLinks(member, store);
  if (!links.ok()) return links.status();
  return std::make_unique<GlooCommunicator>(member, *std::move(links));
}

}  // namespace plumbline
