#include "coordinator/engine/prefix_cache.h"

#include "kernels/check.h"

namespace plumbline {

const PrefixCache::Entry* PrefixCache::Find(const BlockHash& hash) const {
  const auto found = entries_.find(hash);
  return found == entries_.end() ? nullptr : &found->second;
}

bool PrefixCache::Insert(const BlockHash& hash, int32_t block) {
  PL_CHECK(!Holds(block));
  const auto [entry, is_new] = entries_.emplace(hash, Entry{.block = block});
  if (is_new) {
    hash_of_block_[block] = hash;
  } else if (const int32_t known = entry->second.block; idle_since_[known] > 0) {
    SetInUse(known);
    SetIdle(known);
  }
  return is_new;
}

bool PrefixCache::InsertState(const BlockHash& hash, int32_t slot) {
  Entry& entry = entries_.at(hash);
  if (entry.slot >= 0) return false;
  entry.slot = slot;
  PL_CHECK(saved_[slot].used == 0);
  saved_[slot] = {.hash = hash, .used = ++clock_};
  states_.emplace(clock_, slot);
  return true;
}

void PrefixCache::TouchState(int32_t slot) {
  SavedState& state = saved_[slot];
  PL_CHECK(states_.erase({state.used, slot}) == 1);
  state.used = ++clock_;
  states_.emplace(clock_, slot);
}

void PrefixCache::SetIdle(int32_t block) {
  PL_CHECK(Holds(block) && idle_since_[block] == 0);
  idle_since_[block] = ++clock_;
  idle_.emplace(clock_, block);
}

void PrefixCache::SetInUse(int32_t block) {
  PL_CHECK(idle_.erase({idle_since_[block], block}) == 1);
  idle_since_[block] = 0;
}

PrefixCache::Evicted PrefixCache::EvictBlock() {
  PL_CHECK(!idle_.empty());
  const int32_t block = idle_.begin()->second;
  SetInUse(block);
  const BlockHash hash = *std::exchange(hash_of_block_[block], std::nullopt);
  const Entry entry = entries_.extract(hash).mapped();
  PL_CHECK(entry.block == block);
  if (entry.slot >= 0) {
    PL_CHECK(states_.erase({saved_[entry.slot].used, entry.slot}) == 1);
    saved_[entry.slot] = {};
  }
  return {.block = block, .slot = entry.slot};
}

int32_t PrefixCache::EvictState() {
  PL_CHECK(!states_.empty());
  const int32_t slot = states_.begin()->second;
  states_.erase(states_.begin());
  entries_.at(saved_[slot].hash).slot = -1;
  saved_[slot] = {};
  return slot;
}

}  // namespace plumbline
