#include "parallel/shm_segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <climits>
#include <cstring>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/check.h"

namespace plumbline {
namespace {

constexpr size_t kIdBytes = 16;
constexpr size_t kReasonBytes = 512;
constexpr size_t kMaxRingBytes = 256 << 10;
constexpr size_t kMaxRingsBytes = 16 << 20;  // of all rings together
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

absl::Status Error(const char* what) { return absl::ErrnoToStatus(errno, what); }

flock LockOf(int rank) { return {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1}; }

}  // namespace

struct ShmSegment::Head {
  char id[kIdBytes];  // random: who finds it has found the group's memory
  alignas(kShmLine) std::atomic<uint32_t> ended_by;  // rank + 1
};

struct ShmSegment::Member {
  alignas(kShmLine) std::atomic<uint32_t> asleep;
  std::atomic<uint32_t> calls;  // counts what woke it; the futex
  alignas(kShmLine) std::atomic<uint32_t> left;
  char reason[kReasonBytes];  // written before head().ended_by
};

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

ShmSegment::Head& ShmSegment::head() const { return *reinterpret_cast<Head*>(memory_); }
ShmSegment::Member& ShmSegment::member(int rank) const {
  PL_CHECK(rank >= 0 && rank < size_);
  return *reinterpret_cast<Member*>(memory_ + sizeof(Head) + rank * sizeof(Member));
}

size_t ShmSegment::RingCapacity(int size) {
  return std::min(kMaxRingBytes, std::bit_floor(kMaxRingsBytes / (size * size)));
}

size_t ShmSegment::FileBytes(int size) {
  const size_t capacity = RingCapacity(size);
  return sizeof(Head) + size * (sizeof(Member) + ShmRingBytes(size - 1, capacity) + size * ShmRingBytes(1, capacity));
}

ShmRing ShmSegment::RingToAll(int from) const {
  const size_t capacity = RingCapacity(size_);
  std::byte* const rings = memory_ + sizeof(Head) + size_ * sizeof(Member);
  return MakeShmRing(rings + from * ShmRingBytes(size_ - 1, capacity), size_ - 1, capacity);
}

ShmRing ShmSegment::RingTo(int from, int to) const {
  const size_t capacity = RingCapacity(size_);
  std::byte* const rings =
      memory_ + sizeof(Head) + size_ * (sizeof(Member) + ShmRingBytes(size_ - 1, capacity));
  return MakeShmRing(rings + (from * size_ + to) * ShmRingBytes(1, capacity), 1, capacity);
}

absl::StatusOr<std::unique_ptr<ShmSegment>> ShmSegment::Create(int size) {
  if (size < 2 || size > kMaxMembers) {
    return absl::InvalidArgumentError(absl::StrCat("a group of ", size, "; shared memory serves 2 to ", kMaxMembers));
  }
  char id[kIdBytes];
  if (getrandom(id, sizeof(id), 0) != sizeof(id)) return Error("getrandom");
  const int fd = memfd_create("plumbline-ranks", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return Error("memfd_create");
  auto segment = std::unique_ptr<ShmSegment>(new ShmSegment(fd, size));
  // Set aside now: memory that is not there must not be found out by a fault in the middle of a message.
  if (const int error = posix_fallocate(fd, 0, static_cast<off_t>(FileBytes(size))); error != 0) {
    return absl::ErrnoToStatus(error, absl::StrCat("setting ", FileBytes(size), " bytes of shared memory aside"));
  }
  if (fcntl(fd, F_ADD_SEALS, kSeals) != 0) return Error("sealing shared memory");
  if (absl::Status status = segment->Map(); !status.ok()) return status;
  std::memcpy(segment->head().id, id, sizeof(id));
  segment->address_ = absl::StrCat(getpid(), " ", fd, " ", absl::BytesToHexString(std::string(id, sizeof(id))));
  return segment;
}

absl::StatusOr<std::unique_ptr<ShmSegment>> ShmSegment::Open(const std::string& address, int size) {
  const std::vector<std::string> parts = absl::StrSplit(address, ' ');
  int pid = 0, maker_fd = 0;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &pid) || !absl::SimpleAtoi(parts[1], &maker_fd) ||
      parts[2].size() != 2 * kIdBytes || size < 2 || size > kMaxMembers) {
    return absl::InvalidArgumentError(absl::StrCat("'", absl::CHexEscape(address), "' is no address of shared memory"));
  }
  const std::string path = absl::StrCat("/proc/", pid, "/fd/", maker_fd);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return Error(path.c_str());
  auto segment = std::unique_ptr<ShmSegment>(new ShmSegment(fd, size));
  // On another host the same path may be anything.
  const absl::Status other = absl::NotFoundError(absl::StrCat(path, " is not the group's memory"));
  struct stat file;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals || fstat(fd, &file) != 0 ||
      file.st_size != static_cast<off_t>(FileBytes(size))) {
    return other;
  }
  if (absl::Status status = segment->Map(); !status.ok()) return status;
  if (absl::BytesToHexString(std::string(segment->head().id, kIdBytes)) != parts[2]) return other;
  segment->address_ = address;
  return segment;
}

absl::Status ShmSegment::Map() {
  void* const memory = mmap(nullptr, FileBytes(size_), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, 0);
  if (memory == MAP_FAILED) return Error("mapping shared memory");
  memory_ = static_cast<std::byte*>(memory);
  return absl::OkStatus();
}

ShmSegment::~ShmSegment() {
  if (memory_ != nullptr) munmap(memory_, FileBytes(size_));
  close(fd_);
}

absl::Status ShmSegment::Join(int rank) {
  flock lock = LockOf(rank);
  if (fcntl(fd_, F_OFD_SETLK, &lock) == 0) return absl::OkStatus();
  if (errno != EAGAIN && errno != EACCES) return Error("locking shared memory");
  return absl::AlreadyExistsError(absl::StrCat("another process is rank ", rank));
}

bool ShmSegment::IsHeld(int rank) const {
  flock lock = LockOf(rank);
  return fcntl(fd_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

void ShmSegment::Wake(int rank) {
  Member& sleeper = member(rank);
  if (sleeper.asleep.load() == 0 || sleeper.asleep.exchange(0) == 0) return;
  sleeper.calls.fetch_add(1);
  syscall(SYS_futex, &sleeper.calls, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void ShmSegment::WakeAll() {
  for (int rank = 0; rank < size_; ++rank) Wake(rank);
}

uint32_t ShmSegment::BeforeSleep(int rank) {
  Member& sleeper = member(rank);
  const uint32_t ticket = sleeper.calls.load();
  sleeper.asleep.store(1);
  return ticket;
}

bool ShmSegment::Sleep(int rank, uint32_t ticket, std::chrono::nanoseconds time) {
  const timespec limit = {.tv_sec = static_cast<time_t>(time.count() / 1'000'000'000),
                          .tv_nsec = static_cast<long>(time.count() % 1'000'000'000)};
  return syscall(SYS_futex, &member(rank).calls, FUTEX_WAIT, ticket, &limit, nullptr, 0) == 0 || errno != ETIMEDOUT;
}

void ShmSegment::AfterSleep(int rank) { member(rank).asleep.store(0); }

void ShmSegment::Leave(int rank) {
  member(rank).left.store(1);
  WakeAll();
}

bool ShmSegment::HasLeft(int rank) const { return member(rank).left.load() != 0; }

void ShmSegment::End(int rank, const std::string& reason) {
  Member& self = member(rank);
  std::memcpy(self.reason, reason.data(), std::min(reason.size(), kReasonBytes - 1));
  uint32_t nobody = 0;
  head().ended_by.compare_exchange_strong(nobody, rank + 1);
  WakeAll();
}

bool ShmSegment::ended() const { return head().ended_by.load() != 0; }

std::string ShmSegment::reason() const {
  const uint32_t by = head().ended_by.load();
  if (by == 0 || by > static_cast<uint32_t>(size_)) return "a damaged segment of shared memory";
  char words[kReasonBytes];
  std::memcpy(words, member(static_cast<int>(by) - 1).reason, sizeof(words));
  return std::string(words, strnlen(words, sizeof(words)));
}

}  // namespace plumbline
