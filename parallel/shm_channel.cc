#include "parallel/shm_channel.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace plumbline {
namespace {

constexpr size_t kPiece = 64 << 10;  // copied between two publications: the reader copies while the writer goes on

size_t RoundUpToLine(size_t num_bytes) { return (num_bytes + kShmLine - 1) / kShmLine * kShmLine; }

// Calls copy(ring bytes, offset in the piece, count) for the one or two stretches of a piece.
template <typename Copy>
void ForStretches(const ShmRing& ring, uint64_t position, size_t num_bytes, const Copy& copy) {
  const size_t begin = position & (ring.capacity - 1);
  const size_t first = std::min(num_bytes, ring.capacity - begin);
  copy(ring.bytes + begin, 0, first);
  if (num_bytes > first) copy(ring.bytes, first, num_bytes - first);
}

}  // namespace

size_t ShmRingBytes(int num_readers, size_t capacity) { return (1 + num_readers) * sizeof(ShmPosition) + capacity; }

ShmRing MakeShmRing(std::byte* memory, int num_readers, size_t capacity) {
  PL_CHECK(capacity >= 2 * kShmLine && (capacity & (capacity - 1)) == 0);
  auto* positions = reinterpret_cast<ShmPosition*>(memory);
  return {.written = positions,
          .read = positions + 1,
          .num_readers = num_readers,
          .bytes = memory + (1 + num_readers) * sizeof(ShmPosition),
          .capacity = capacity};
}

void ShmWriter::Begin(ShmMessage message, const std::byte* data) {
  PL_CHECK(said_what_ && num_left_ == 0);
  message_ = message;
  data_ = data;
  num_left_ = message.num_bytes;
  said_what_ = false;
}

bool ShmWriter::FindSlowest() {
  oldest_ = position_;
  for (int reader = 0; reader < ring_.num_readers; ++reader) {
    const uint64_t read = ring_.read[reader].bytes.load();
    if (position_ - read > ring_.capacity || read % kShmLine != 0) {
      slowest_reader_ = reader;
      return false;
    }
    if (position_ - read > position_ - oldest_) {
      oldest_ = read;
      slowest_reader_ = reader;
    }
  }
  return true;
}

ShmStep ShmWriter::Step() {
  if (said_what_ && num_left_ == 0) return ShmStep::kDone;
  const size_t wanted = std::min(kPiece, RoundUpToLine(num_left_)) + (said_what_ ? 0 : kShmLine);
  size_t room = ring_.capacity - (position_ - oldest_);
  if (room < wanted) {
    if (!FindSlowest()) return ShmStep::kBroken;
    room = ring_.capacity - (position_ - oldest_);
    if (room == 0) return ShmStep::kStalled;
  }
  if (!said_what_) {
    std::memcpy(ring_.bytes + (position_ & (ring_.capacity - 1)), &message_, sizeof(message_));
    position_ += kShmLine;
    room -= kShmLine;
    said_what_ = true;
  }
  const size_t count = std::min({num_left_, room, kPiece});
  if (count > 0) {
    ForStretches(ring_, position_, count,
                 [&](std::byte* ring, size_t offset, size_t n) { std::memcpy(ring, data_ + offset, n); });
    data_ += count;
    num_left_ -= count;
    position_ += RoundUpToLine(count);
  }
  ring_.written->bytes.store(position_);
  return num_left_ == 0 ? ShmStep::kDone : ShmStep::kMoved;
}

void ShmReader::Begin(ShmMessage expected, std::byte* data) {
  PL_CHECK(knows_what_ && num_left_ == 0);
  expected_ = expected;
  data_ = data;
  num_left_ = expected.num_bytes;
  knows_what_ = false;
}

ShmStep ShmReader::Step() {
  if (knows_what_ && num_left_ == 0) return ShmStep::kDone;
  size_t available = ring_.written->bytes.load() - position_;
  if (available == 0) return ShmStep::kStalled;
  if (available > ring_.capacity || available % kShmLine != 0) {
    problem_ = absl::StrCat("a ring of ", ring_.capacity, " bytes that says it holds ", available);
    return ShmStep::kBroken;
  }
  if (!knows_what_) {
    ShmMessage message;
    std::memcpy(&message, ring_.bytes + (position_ & (ring_.capacity - 1)), sizeof(message));
    if (message.operation != expected_.operation || message.num_bytes != expected_.num_bytes) {
      problem_ = absl::StrCat("a message of ", message.num_bytes, " bytes for operation ", message.operation, " instead of ",
                              expected_.num_bytes, " for operation ", expected_.operation);
      return ShmStep::kBroken;
    }
    position_ += kShmLine;
    available -= kShmLine;
    knows_what_ = true;
  }
  const size_t count = std::min({num_left_, available, kPiece});
  if (count > 0) {
    ForStretches(ring_, position_, count,
                 [&](const std::byte* ring, size_t offset, size_t n) { std::memcpy(data_ + offset, ring, n); });
    data_ += count;
    num_left_ -= count;
    position_ += RoundUpToLine(count);
  }
  read_->bytes.store(position_);
  return num_left_ == 0 ? ShmStep::kDone : ShmStep::kMoved;
}

}  // namespace plumbline
