// PrefixCache: which full blocks of prompts, and which states behind them, the caches hold under
// which hash, and in which order they are given up. It owns nothing: BlockManager tells it which
// blocks are idle (in no sequence's table) and takes back what it evicts. Not thread-safe.
//
// The least recently used goes first. A chain is released from its end, so that its tail goes
// before its head, without which the tail could not be found.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "coordinator/engine/block_hash.h"

namespace plumbline {

class PrefixCache {
 public:
  struct Entry {
    int32_t block = -1;
    int32_t slot = -1;  // holds the state behind the block's last token; -1: none does
  };
  struct Evicted {
    int32_t block = -1;
    int32_t slot = -1;  // its state, lost with it; -1: it had none
  };

  explicit PrefixCache(int64_t num_blocks, int64_t num_slots)
      : hash_of_block_(num_blocks), idle_since_(num_blocks, 0), saved_(num_slots) {}

  // Null when the hash is not there. Valid until the next change.
  const Entry* Find(const BlockHash& hash) const;
  // The block, which is in use, holds what the hash names. False when another one already does: that
  // one counts as used now.
  bool Insert(const BlockHash& hash, int32_t block);
  // The slot holds the state behind the hash's block. False when another one already does. REQUIRES:
  // the hash is there.
  bool InsertState(const BlockHash& hash, int32_t slot);
  void TouchState(int32_t slot);

  // Whether the block is held under a hash.
  bool Holds(int32_t block) const { return hash_of_block_[block].has_value(); }
  // REQUIRES: Holds(block), and it was in use / idle.
  void SetIdle(int32_t block);
  void SetInUse(int32_t block);

  // The least recently used idle block, or state. REQUIRES: there is one.
  Evicted EvictBlock();
  int32_t EvictState();

  int64_t num_blocks() const { return static_cast<int64_t>(entries_.size()); }
  int64_t num_idle_blocks() const { return static_cast<int64_t>(idle_.size()); }
  int64_t num_states() const { return static_cast<int64_t>(states_.size()); }

 private:
  struct SavedState {
    BlockHash hash;
    uint64_t used = 0;  // by clock_; 0: holds no state
  };

  absl::flat_hash_map<BlockHash, Entry> entries_;
  std::vector<std::optional<BlockHash>> hash_of_block_;
  std::vector<uint64_t> idle_since_;  // by block and clock_; 0: in use or not held
  std::vector<SavedState> saved_;     // by slot
  absl::btree_set<std::pair<uint64_t, int32_t>> idle_;    // (idle_since, block)
  absl::btree_set<std::pair<uint64_t, int32_t>> states_;  // (used, slot)
  uint64_t clock_ = 0;
};

}  // namespace plumbline
