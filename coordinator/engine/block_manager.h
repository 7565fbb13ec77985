// BlockManager: which KV blocks and recurrent-state slots are free. Pure bookkeeping; the bytes
// live on the ranks. A block has a reference count, so that sequences may share one. Not
// thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace plumbline {

class BlockManager {
 public:
  BlockManager(int64_t num_blocks, int64_t num_state_slots);

  // `count` blocks with one reference each; none and no change when fewer are free.
  std::optional<std::vector<int32_t>> Allocate(int64_t count);
  // One more reference to a block that is in use.
  void Share(int32_t block);
  // One reference less to each; a block without references is free.
  void Release(std::span<const int32_t> blocks);

  std::optional<int32_t> AcquireSlot();
  void ReleaseSlot(int32_t slot);

  int64_t num_blocks() const { return static_cast<int64_t>(references_.size()); }
  int64_t num_free_blocks() const { return static_cast<int64_t>(free_blocks_.size()); }
  int64_t num_slots() const { return static_cast<int64_t>(slot_used_.size()); }
  int64_t num_free_slots() const { return static_cast<int64_t>(free_slots_.size()); }

 private:
  std::vector<int32_t> references_;   // by block
  std::vector<int32_t> free_blocks_;  // the last is given out next
  std::vector<bool> slot_used_;       // by slot
  std::vector<int32_t> free_slots_;   // the last is given out next
};

}  // namespace plumbline
