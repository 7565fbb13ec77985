// A channel in memory that processes share: a bounded ring of bytes that one rank writes and one or more others read, each
// all of it. A message is a line that says what it is, and its bytes, padded to a line. Messages larger than the ring pass
// through it in pieces.
//
// Each end keeps its own position to itself and only publishes it: whatever another process writes into the memory, no
// byte outside the ring and the caller's buffers is touched. A position or message that cannot be is kBroken.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace plumbline {

constexpr size_t kShmLine = 64;  // of the cache; two ranks do not write into one

struct alignas(kShmLine) ShmPosition {
  std::atomic<uint64_t> bytes;  // since the beginning; a multiple of kShmLine
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(ShmPosition) == kShmLine);

// Views of zeroed memory that outlives them; `bytes` is `capacity` long, a power of two and of several lines.
struct ShmRing {
  ShmPosition* written = nullptr;
  ShmPosition* read = nullptr;  // one per reader
  int num_readers = 0;
  std::byte* bytes = nullptr;
  size_t capacity = 0;
};
size_t ShmRingBytes(int num_readers, size_t capacity);
// memory: ShmRingBytes(...) bytes, at a line's beginning.
ShmRing MakeShmRing(std::byte* memory, int num_readers, size_t capacity);

enum class ShmStep { kDone, kMoved, kStalled, kBroken };

// What both ends must say alike.
struct ShmMessage {
  uint64_t operation = 0;
  uint64_t num_bytes = 0;
};

// One thread each. Begin, then Step until kDone; the next Begin only then.
class ShmWriter {
 public:
  explicit ShmWriter(const ShmRing& ring) : ring_(ring) {}

  void Begin(ShmMessage message, const std::byte* data);
  // Copies one piece if there is room. kDone: all bytes are in the ring.
  ShmStep Step();
  // True when all readers have taken all that was written.
  bool Drained() { return FindSlowest() && oldest_ == position_; }
  int slowest_reader() const { return slowest_reader_; }  // of the last look

 private:
  // False when a reader's position cannot be.
  bool FindSlowest();

  ShmRing ring_;
  ShmMessage message_;
  const std::byte* data_ = nullptr;
  size_t num_left_ = 0;
  bool said_what_ = true;
  uint64_t position_ = 0;
  uint64_t oldest_ = 0;  // position of the slowest reader when last looked
  int slowest_reader_ = 0;
};

class ShmReader {
 public:
  ShmReader(const ShmRing& ring, int reader) : ring_(ring), read_(&ring.read[reader]) {}

  void Begin(ShmMessage expected, std::byte* data);
  // Copies one piece if there is one. kDone: all bytes of the message have been taken.
  ShmStep Step();
  // What was found instead of the expected. REQUIRES: Step returned kBroken.
  const std::string& problem() const { return problem_; }

 private:
  ShmRing ring_;
  ShmPosition* read_;
  ShmMessage expected_;
  std::byte* data_ = nullptr;
  size_t num_left_ = 0;
  bool knows_what_ = true;
  uint64_t position_ = 0;
  std::string problem_;
};

}  // namespace plumbline
