// BlockManager: which KV blocks and recurrent-state slots are free, and which hold prefixes worth
// keeping. Pure bookkeeping; the bytes live on the ranks. A block has a reference count, so that
// sequences may share one. Blocks in no table and saved states stay cached until their place is
// needed, so they count as free. Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/engine/prefix_cache.h"

namespace plumbline {

class BlockManager {
 public:
  BlockManager(int64_t num_blocks, int64_t num_state_slots);

  // `count` blocks with one reference each, the least recently used cached ones last; none and no
  // change when fewer are free.
  std::optional<std::vector<int32_t>> Allocate(int64_t count);
  // One more reference to a block that is in use or cached.
  void Share(int32_t block);
  // One reference less to each, from the last to the first; a block without references is free.
  void Release(std::span<const int32_t> blocks);

  // A slot without a state, else the least recently used saved state's.
  std::optional<int32_t> AcquireSlot();
  void ReleaseSlot(int32_t slot);

  // Keeps a block, which is in use, to be found under its hash until its place is needed; nothing when
  // the hash has a block already.
  void Keep(const BlockHash& hash, int32_t block);
  // Hands over an acquired slot that holds the state behind the hash's block, which is kept; it is free
  // at once when the hash has a state already.
  void KeepState(const BlockHash& hash, int32_t slot);
  void TouchState(int32_t slot) { cache_.TouchState(slot); }
  const PrefixCache& cache() const { return cache_; }

  int64_t num_blocks() const { return static_cast<int64_t>(references_.size()); }
  int64_t num_free_blocks() const {
    return static_cast<int64_t>(free_blocks_.size()) + cache_.num_idle_blocks();
  }
  int64_t num_slots() const { return static_cast<int64_t>(slot_used_.size()); }
  int64_t num_free_slots() const {
    return static_cast<int64_t>(free_slots_.size()) + cache_.num_states();
  }

 private:
  int32_t TakeBlock();

  std::vector<int32_t> references_;   // by block
  std::vector<int32_t> free_blocks_;  // not cached; the last is given out next
  std::vector<bool> slot_used_;       // by slot: a sequence's, or one on its way to be kept
  std::vector<int32_t> free_slots_;   // without a state; the last is given out next
  PrefixCache cache_;
};

}  // namespace plumbline
