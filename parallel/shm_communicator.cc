// Ranks are processes of one host; bytes pass through memory that all of them have mapped. There is no thread but the
// caller's: a call copies what there is room or bytes for, and when nothing moves it watches for a moment, then sleeps until
// a peer that moved something wakes it. A sleeper looks up now and then for peers that are gone.
#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "parallel/communicator.h"
#include "parallel/group_errors.h"
#include "parallel/shm_channel.h"
#include "parallel/shm_links.h"
#include "parallel/shm_segment.h"

namespace plumbline {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr microseconds kWatchTime(50);  // at first without giving the core away
constexpr microseconds kKeepCoreTime(4);
constexpr milliseconds kLookUpInterval(10);  // a dead peer is missed that soon

enum class Operation : uint64_t { kNone, kAllGather, kAllToAll, kBroadcast, kSend, kRecv };

const char* NameOf(Operation operation) {
  switch (operation) {
    case Operation::kNone: return "";
    case Operation::kAllGather: return "AllGather";
    case Operation::kAllToAll: return "AllToAll";
    case Operation::kBroadcast: return "Broadcast";
    case Operation::kSend: return "Send";
    case Operation::kRecv: return "Recv";
  }
  return "";
}

void Pause() {
  for (int i = 0; i < 4; ++i) _mm_pause();
}

std::byte* BytesOf(Tensor tensor) { return static_cast<std::byte*>(tensor.raw()); }
const std::byte* BytesOf(ConstTensor tensor) { return static_cast<const std::byte*>(tensor.raw()); }

class ShmCommunicator final : public Communicator {
 public:
  ShmCommunicator(const GroupMember& member, std::unique_ptr<ShmSegment> segment)
      : member_(member), segment_(std::move(segment)), to_all_(segment_->RingToAll(rank())) {
    for (int peer = 0; peer < size(); ++peer) {
      to_.emplace_back(segment_->RingTo(rank(), peer));
      from_.emplace_back(segment_->RingTo(peer, rank()), 0);
      from_all_.emplace_back(segment_->RingToAll(peer), ReaderIndex(peer, rank()));
    }
    transfers_.reserve(2 * size());
  }

  ~ShmCommunicator() override {
    if (Health().ok()) segment_->Leave(rank());
  }

  int rank() const override { return member_.rank; }
  int size() const override { return member_.size; }

  absl::Status AllGather(Tensor out, ConstTensor in) override {
    const size_t slice = in.num_bytes();
    PL_CHECK(out.num_bytes() == slice * size());
    return Exchange(Operation::kAllGather, [&] {
      WriteToAll(Operation::kAllGather, BytesOf(in), slice);
      ForPeers([&](int peer) { Read(from_all_[peer], peer, Operation::kAllGather, BytesOf(out) + peer * slice, slice); });
      CopyOwn(BytesOf(out) + rank() * slice, BytesOf(in), slice);
    });
  }

  absl::Status AllToAll(Tensor out, ConstTensor in) override {
    const size_t slice = in.num_bytes() / size();
    PL_CHECK(in.num_bytes() == slice * size() && out.num_bytes() == in.num_bytes());
    return Exchange(Operation::kAllToAll, [&] {
      ForPeers([&](int peer) { Write(peer, Operation::kAllToAll, BytesOf(in) + peer * slice, slice); });
      ForPeers([&](int peer) { Read(from_[peer], peer, Operation::kAllToAll, BytesOf(out) + peer * slice, slice); });
      CopyOwn(BytesOf(out) + rank() * slice, BytesOf(in) + rank() * slice, slice);
    });
  }

  absl::Status Broadcast(Tensor data, int root) override {
    PL_CHECK(root >= 0 && root < size());
    return Exchange(Operation::kBroadcast, [&] {
      if (root == rank()) {
        WriteToAll(Operation::kBroadcast, BytesOf(data), data.num_bytes());
      } else {
        Read(from_all_[root], root, Operation::kBroadcast, BytesOf(data), data.num_bytes());
      }
    });
  }

  absl::Status Send(ConstTensor data, int peer) override {
    PL_CHECK(peer >= 0 && peer < size() && peer != rank());
    return Exchange(Operation::kSend, [&] { Write(peer, Operation::kSend, BytesOf(data), data.num_bytes()); });
  }

  absl::Status Recv(Tensor data, int peer) override {
    PL_CHECK(peer >= 0 && peer < size() && peer != rank());
    return Exchange(Operation::kRecv, [&] { Read(from_[peer], peer, Operation::kSend, BytesOf(data), data.num_bytes()); });
  }

  absl::Status Health() const override {
    if (!ended_) LookForEnd();
    std::lock_guard lock(mutex_);
    return status_;
  }

  void Abort(absl::Status reason) override {
    PL_CHECK_MSG(!reason.ok(), "Abort needs a reason");
    const std::string cause = reason.ToString();
    End(std::move(reason), cause);
  }

 private:
  struct Transfer {
    ShmWriter* writer = nullptr;  // one of the two
    ShmReader* reader = nullptr;
    int peer = -1;  // -1: all
    bool until_taken = false;  // a write is done when it has been read
    bool copied = false;
  };

  using PeerSet = uint64_t;  // a bit per rank
  static_assert(ShmSegment::kMaxMembers <= 64);

  // What one pass over the transfers came to.
  struct Pass {
    bool done = true;
    bool moved = false;
    PeerSet waiting_for = 0;  // of transfers that did not move
    std::string problem;      // not empty: the group is over
  };

  // Each rank begins with its right neighbour.
  template <typename F>
  void ForPeers(const F& f) const {
    for (int step = 1; step < size(); ++step) f((rank() + step) % size());
  }

  static void CopyOwn(std::byte* to, const std::byte* from, size_t num_bytes) {
    if (to != from && num_bytes > 0) std::memcpy(to, from, num_bytes);
  }

  void WriteToAll(Operation operation, const std::byte* data, size_t num_bytes) {
    to_all_.Begin({static_cast<uint64_t>(operation), num_bytes}, data);
    transfers_.push_back({.writer = &to_all_});
  }
  void Write(int peer, Operation operation, const std::byte* data, size_t num_bytes) {
    to_[peer].Begin({static_cast<uint64_t>(operation), num_bytes}, data);
    transfers_.push_back({.writer = &to_[peer], .peer = peer, .until_taken = operation == Operation::kSend});
  }
  void Read(ShmReader& reader, int peer, Operation operation, std::byte* data, size_t num_bytes) {
    reader.Begin({static_cast<uint64_t>(operation), num_bytes}, data);
    transfers_.push_back({.reader = &reader, .peer = peer});
  }

  template <typename Begin>
  absl::Status Exchange(Operation operation, const Begin& begin) {
    if (!ended_) {
      operation_ = operation;
      transfers_.clear();
      begin();
      Run();
      operation_ = Operation::kNone;
      if (!ended_) return absl::OkStatus();
    }
    std::lock_guard lock(mutex_);
    return status_;
  }

  // Until all transfers are done or the group has ended.
  void Run() {
    std::optional<Clock::time_point> idle_since, deadline;
    bool sleepy = false;  // if the next pass moves nothing either
    uint32_t ticket = 0;  // to sleep with
    PeerSet left = 0;     // before that pass
    while (!ended_) {
      const Pass pass = MoveAll();
      if (!pass.problem.empty()) return EndHere(pass.problem);
      if (pass.moved || pass.done) {
        if (sleepy) segment_->AfterSleep(rank());
        if (pass.done) return;
        sleepy = false;
        idle_since.reset();
        continue;
      }
      if (segment_->ended()) return EndByAnother();
      const Clock::time_point now = Clock::now();
      if (!idle_since) idle_since = now;
      if (!deadline) deadline = now + Timeout();
      if (now >= *deadline) return EndLate(std::countr_zero(pass.waiting_for));
      if (sleepy) {
        if (const PeerSet gone = pass.waiting_for & left; gone != 0) {
          return EndHere(absl::StrCat("rank ", std::countr_zero(gone), " has left the group"));
        }
        const bool woken = segment_->Sleep(rank(), ticket, std::min<Clock::duration>(kLookUpInterval, *deadline - now));
        segment_->AfterSleep(rank());
        sleepy = false;
        if (!woken) LookForEnd();
      } else if (now - *idle_since < kKeepCoreTime) {
        Pause();
      } else if (now - *idle_since < kWatchTime) {
        sched_yield();
      } else {
        sleepy = true;
        ticket = segment_->BeforeSleep(rank());
        left = PeersThatLeft();
      }
    }
  }

  Pass MoveAll() {
    Pass pass;
    for (Transfer& transfer : transfers_) {
      if (!transfer.copied) {
        const ShmStep step = transfer.writer != nullptr ? transfer.writer->Step() : transfer.reader->Step();
        if (step == ShmStep::kBroken) {
          pass.problem = transfer.writer != nullptr
                             ? absl::StrCat("rank ", PeerOf(transfer), " left an impossible position in shared memory")
                             : absl::StrCat("rank ", transfer.peer, " left ", transfer.reader->problem());
          return pass;
        }
        if (step != ShmStep::kStalled) {
          pass.moved = true;
          transfer.peer < 0 ? segment_->WakeAll() : segment_->Wake(transfer.peer);
        }
        transfer.copied = step == ShmStep::kDone;
      }
      if (transfer.copied && (!transfer.until_taken || transfer.writer->Drained())) continue;
      pass.done = false;
      pass.waiting_for |= PeerSet{1} << PeerOf(transfer);
    }
    return pass;
  }

  // Of a write to all: the slowest.
  int PeerOf(const Transfer& transfer) const {
    if (transfer.peer >= 0) return transfer.peer;
    const int reader = transfer.writer->slowest_reader();
    return reader < rank() ? reader : reader + 1;
  }

  PeerSet PeersThatLeft() const {
    PeerSet left = 0;
    ForPeers([&](int peer) { left |= PeerSet{segment_->HasLeft(peer)} << peer; });
    return left;
  }

  // Ends the group here if another rank has ended it, or is gone without a goodbye.
  void LookForEnd() const {
    std::optional<int> dead;
    ForPeers([&](int peer) {
      if (!segment_->IsHeld(peer) && !segment_->HasLeft(peer)) dead = peer;
    });
    // Looked at last: who ends the group may be gone soon after.
    if (segment_->ended()) {
      EndByAnother();
    } else if (dead) {
      EndHere(absl::StrCat("lost the connection to rank ", *dead, ": its process has ended"));
    }
  }

  void EndByAnother() const {
    const std::string reason = segment_->reason();
    End(absl::UnavailableError(absl::StrCat(Where(), ": ", plumbline::EndedByAnother(reason))), reason);
  }
  void EndHere(const std::string& problem) const {
    const std::string cause = absl::StrCat(Where(), ": ", problem);
    End(absl::UnavailableError(cause), cause);
  }
  void EndLate(int peer) const {
    const std::string cause = absl::StrCat(Where(), ": ", DidNotAnswer(member_, peer));
    End(absl::DeadlineExceededError(cause), cause);
  }

  // The first reason stays. `cause` is what the other ranks are told, unless they have been told before.
  void End(absl::Status reason, const std::string& cause) const {
    {
      std::lock_guard lock(mutex_);
      if (!status_.ok()) return;
      status_ = std::move(reason);
    }
    ended_ = true;
    segment_->End(rank(), cause);
  }

  std::string Where() const {
    const Operation operation = operation_;
    return operation == Operation::kNone ? plumbline::NameOf(member_)
                                         : absl::StrCat(plumbline::NameOf(member_), ", ", NameOf(operation));
  }
  std::chrono::nanoseconds Timeout() const {
    return absl::ToChronoNanoseconds(std::clamp(member_.timeout, absl::Milliseconds(1), absl::Hours(24)));
  }
  static int ReaderIndex(int from, int reader) { return reader < from ? reader : std::max(0, reader - 1); }

  const GroupMember member_;
  const std::unique_ptr<ShmSegment> segment_;
  ShmWriter to_all_;
  std::vector<ShmWriter> to_;  // by peer; a rank's own are not used
  std::vector<ShmReader> from_, from_all_;
  std::vector<Transfer> transfers_;  // of the call under way
  std::atomic<Operation> operation_ = Operation::kNone;
  // Health finds out, too, that a group has ended.
  mutable std::mutex mutex_;
  mutable absl::Status status_;
  mutable std::atomic<bool> ended_ = false;  // set after status_
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> ConnectShm(const GroupMember& member, RendezvousStore& store) {
  PL_CHECK(member.size >= 1 && member.rank >= 0 && member.rank < member.size);
  if (member.size == 1) return std::move(MakeLocalGroup(1, member.timeout)[0]);
  auto segment = JoinShmSegment(member, store);
  if (!segment.ok()) return segment.status();
  return std::make_unique<ShmCommunicator>(member, *std::move(segment));
}

}  // namespace plumbline
