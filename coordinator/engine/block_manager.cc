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
      free_slots_(Descending(num_state_slots)) {}

std::optional<std::vector<int32_t>> BlockManager::Allocate(int64_t count) {
  if (count > num_free_blocks()) return std::nullopt;
  std::vector<int32_t> blocks;
  blocks.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t block = free_blocks_.back();
    free_blocks_.pop_back();
    PL_CHECK(references_[block] == 0);
    references_[block] = 1;
    blocks.push_back(block);
  }
  return blocks;
}

void BlockManager::Share(int32_t block) {
  PL_CHECK(block >= 0 && block < num_blocks() && references_[block] > 0);
  ++references_[block];
}

void BlockManager::Release(std::span<const int32_t> blocks) {
  for (const int32_t block : blocks) {
    PL_CHECK(block >= 0 && block < num_blocks() && references_[block] > 0);
    if (--references_[block] == 0) free_blocks_.push_back(block);
  }
}

std::optional<int32_t> BlockManager::AcquireSlot() {
  if (free_slots_.empty()) return std::nullopt;
  const int32_t slot = free_slots_.back();
  free_slots_.pop_back();
  slot_used_[slot] = true;
  return slot;
}

void BlockManager::ReleaseSlot(int32_t slot) {
  PL_CHECK(slot >= 0 && slot < num_slots() && slot_used_[slot]);
  slot_used_[slot] = false;
  free_slots_.push_back(slot);
}

}  // namespace plumbline
