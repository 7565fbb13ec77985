// ShmSegment: the memory that the processes of one group on one host share: a channel from each rank to all others, one from
// each rank to each other, and what ranks need to wake, end and miss each other.
//
// The memory is an anonymous file that others open through the maker's entry in /proc: it has no name that could be left
// behind, is sealed at its size, and is gone with the last process that has it open. A member holds a lock on its own byte
// of the file for as long as it lives; the kernel drops it with the process, whatever the way.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/shm_channel.h"

namespace plumbline {

class ShmSegment {
 public:
  static constexpr int kMaxMembers = 64;

  // For a group of `size`; at most 18 MiB, all of it set aside at once.
  static absl::StatusOr<std::unique_ptr<ShmSegment>> Create(int size);
  // Another process's; an error when it is of another host or group, or may not be opened.
  static absl::StatusOr<std::unique_ptr<ShmSegment>> Open(const std::string& address, int size);
  ~ShmSegment();
  ShmSegment(const ShmSegment&) = delete;

  const std::string& address() const { return address_; }

  // Takes the rank's place until this object goes; ALREADY_EXISTS when another has it. Call once.
  absl::Status Join(int rank);
  // Somebody has the rank's place. Any thread.
  bool IsHeld(int rank) const;

  ShmRing RingToAll(int from) const;  // reader r's index: r < from ? r : r - 1
  ShmRing RingTo(int from, int to) const;

  // ---- any thread ----

  // `rank`, asleep or about to be, looks again.
  void Wake(int rank);
  void WakeAll();
  // Says that a Wake is needed from now on; what can be waited for is to be looked at once more between this and Sleep.
  uint32_t BeforeSleep(int rank);
  // Until woken since BeforeSleep, or the time has passed (then false).
  bool Sleep(int rank, uint32_t ticket, std::chrono::nanoseconds time);
  void AfterSleep(int rank);

  // The rank takes part in nothing more, and lacks nothing.
  void Leave(int rank);
  bool HasLeft(int rank) const;
  // The first to end the group says why. REQUIRES: at most one call per rank.
  void End(int rank, const std::string& reason);
  bool ended() const;
  std::string reason() const;  // REQUIRES: ended(). Another process's words

 private:
  struct Head;
  struct Member;

  ShmSegment(int fd, int size) : fd_(fd), size_(size) {}
  absl::Status Map();
  Head& head() const;
  Member& member(int rank) const;
  static size_t RingCapacity(int size);
  static size_t FileBytes(int size);

  const int fd_;
  const int size_;
  std::byte* memory_ = nullptr;
  std::string address_;
};

}  // namespace plumbline
