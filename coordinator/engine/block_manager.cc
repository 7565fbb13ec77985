#include "coordinator/engine/block_manager.h"

#include "kernels/check.h"

namespace plumbline {
namespace {

// Highest first, so that low numbers are given out first.
std::vector<int32_t> Descending(int64_t count) {
  std::vector<int32_t> list(count);
  for (int64_t i = 0; i < count; ++i) list[i] = static_cast<int32_t>(count - 1 - i);
  return list;
}

}  // namespace

BlockManager::BlockManager(int64_t num_blocks, int64_t num_state_slots)
    : references_(num_blocks, 0),
      free_blocks_(Descending(num_blocks)),
      slot_used_(num_state_slots, false),
      free_slots_(Descending(num_state_slots)),
      cache_(num_blocks, num_state_slots) {}

std::optional<std::vector<int32_t>> BlockManager::Allocate(int64_t count) {
  if (count > num_free_blocks()) return std::nullopt;
  std::vector<int32_t> blocks;
  blocks.reserve(count);
  for (int64_t i = 0; i < count; ++i) blocks.push_back(TakeBlock());
  return blocks;
}

int32_t BlockManager::TakeBlock() {
  int32_t block;
  if (free_blocks_.empty()) {
    const PrefixCache::Evicted evicted = cache_.EvictBlock();
    block = evicted.block;
    if (evicted.slot >= 0) free_slots_.push_back(evicted.slot);
  } else {
    block = free_blocks_.back();
    free_blocks_.pop_back();
  }
  PL_CHECK(references_[block] == 0);
  references_[block] = 1;
  return block;
}

void BlockManager::Share(int32_t block) {
  PL_CHECK(block >= 0 && block < num_blocks());
  PL_CHECK(references_[block] > 0 || cache_.Holds(block));
  if (references_[block]++ == 0) cache_.SetInUse(block);
}

void BlockManager::Release(std::span<const int32_t> blocks) {
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    PL_CHECK(*block >= 0 && *block < num_blocks() && references_[*block] > 0);
    if (--references_[*block] > 0) continue;
    if (cache_.Holds(*block)) {
      cache_.SetIdle(*block);
    } else {
      free_blocks_.push_back(*block);
    }
  }
}

std::optional<int32_t> BlockManager::AcquireSlot() {
  int32_t slot;
  if (!free_slots_.empty()) {
    slot = free_slots_.back();
    free_slots_.pop_back();
  } else if (cache_.num_states() > 0) {
    slot = cache_.EvictState();
  } else {
    return std::nullopt;
  }
  slot_used_[slot] = true;
  return slot;
}

void BlockManager::ReleaseSlot(int32_t slot) {
  PL_CHECK(slot >= 0 && slot < num_slots() && slot_used_[slot]);
  slot_used_[slot] = false;
  free_slots_.push_back(slot);
}

void BlockManager::Keep(const BlockHash& hash, int32_t block) {
  PL_CHECK(references_[block] > 0);
  cache_.Insert(hash, block);
}

void BlockManager::KeepState(const BlockHash& hash, int32_t slot) {
  PL_CHECK(slot >= 0 && slot < num_slots() && slot_used_[slot]);
  slot_used_[slot] = false;
  if (!cache_.InsertState(hash, slot)) free_slots_.push_back(slot);
}

}  // namespace plumbline
