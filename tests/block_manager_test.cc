// Blocks and slots are never given to two owners, and everything given back is free again.
#include "coordinator/engine/block_manager.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace plumbline {
namespace {

TEST(BlockManagerTest, AllocatesAllOrNothing) {
  BlockManager blocks(3, 0);
  EXPECT_FALSE(blocks.Allocate(4).has_value());
  EXPECT_EQ(blocks.num_free_blocks(), 3);
  const auto all = blocks.Allocate(3);
  ASSERT_TRUE(all.has_value());
  EXPECT_EQ(std::set<int32_t>(all->begin(), all->end()), (std::set<int32_t>{0, 1, 2}));
  EXPECT_FALSE(blocks.Allocate(1).has_value());
  EXPECT_TRUE(blocks.Allocate(0).has_value());
}

TEST(BlockManagerTest, SharedBlockIsFreeAfterItsLastRelease) {
  BlockManager blocks(1, 0);
  const std::vector<int32_t> block = *blocks.Allocate(1);
  blocks.Share(block[0]);
  blocks.Release(block);
  EXPECT_EQ(blocks.num_free_blocks(), 0);
  blocks.Release(block);
  EXPECT_EQ(blocks.num_free_blocks(), 1);
}

TEST(BlockManagerTest, SlotsAreExclusive) {
  BlockManager blocks(0, 2);
  const int32_t a = *blocks.AcquireSlot();
  const int32_t b = *blocks.AcquireSlot();
  EXPECT_NE(a, b);
  EXPECT_FALSE(blocks.AcquireSlot().has_value());
  blocks.ReleaseSlot(a);
  EXPECT_EQ(blocks.AcquireSlot(), a);
}

TEST(BlockManagerDeathTest, ReleasingAFreeBlockOrSlotIsABug) {
  BlockManager blocks(2, 2);
  const std::vector<int32_t> block{0};
  EXPECT_DEATH(blocks.Release(block), "CHECK failed");
  EXPECT_DEATH(blocks.Share(0), "CHECK failed");
  EXPECT_DEATH(blocks.ReleaseSlot(0), "CHECK failed");
}

TEST(BlockManagerTest, RandomUseAgreesWithAMapOfOwners) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const int64_t num_blocks = 1 + random() % 20;
    BlockManager blocks(num_blocks, 0);
    std::map<int32_t, int> references;
    std::vector<std::vector<int32_t>> held;
    for (int i = 0; i < 300; ++i) {
      switch (random() % 3) {
        case 0: {
          const int64_t count = random() % 5;
          const auto got = blocks.Allocate(count);
          ASSERT_EQ(got.has_value(), count <= num_blocks - static_cast<int64_t>(references.size()));
          if (!got) break;
          for (const int32_t block : *got) ASSERT_EQ(references[block]++, 0);
          held.push_back(*got);
          break;
        }
        case 1:
          if (held.empty()) break;
          held.push_back(held[random() % held.size()]);
          for (const int32_t block : held.back()) {
            blocks.Share(block);
            ++references[block];
          }
          break;
        case 2: {
          if (held.empty()) break;
          std::swap(held[random() % held.size()], held.back());
          blocks.Release(held.back());
          for (const int32_t block : held.back()) {
            if (--references[block] == 0) references.erase(block);
          }
          held.pop_back();
          break;
        }
      }
      ASSERT_EQ(blocks.num_free_blocks(), num_blocks - static_cast<int64_t>(references.size()));
    }
  }
}

}  // namespace
}  // namespace plumbline
