// The first tokens in the order (logit descending, id ascending), without sorting the vocabulary.
#pragma once

#include <algorithm>
#include <cstdint>

namespace plumbline {

inline constexpr int64_t kTokenBlock = 256;
inline int64_t NumTokenBlocks(int64_t vocab) { return (vocab + kTokenBlock - 1) / kTokenBlock; }

// A row of logits with the maximum of each block of kTokenBlock tokens.
struct TokenBlocks {
  const float* logits;     // [vocab]
  const float* block_max;  // [ceil(vocab / kTokenBlock)]
  int64_t vocab;
};

// The lowest id with this logit, 0 when there is none.
inline int32_t FirstOfValue(const TokenBlocks& row, float value) {
  for (int64_t block = 0; block * kTokenBlock < row.vocab; ++block) {
    if (row.block_max[block] != value) continue;
    const float* begin = row.logits + block * kTokenBlock;
    return static_cast<int32_t>(std::find(begin, row.logits + row.vocab, value) - row.logits);
  }
  return 0;
}

// Writes the first `size` <= vocab tokens, in order. A heap holds the best so far, the last of them on top; ids ascend, so
// a later token enters only with a larger logit, and a block without one is skipped.
inline void SelectBest(const TokenBlocks& row, int64_t size, int32_t* best) {
  const auto before = [&](int32_t a, int32_t b) {
    return row.logits[a] != row.logits[b] ? row.logits[a] > row.logits[b] : a < b;
  };
  for (int64_t i = 0; i < size; ++i) best[i] = static_cast<int32_t>(i);
  if (size < row.vocab) {
    std::make_heap(best, best + size, before);
    for (int64_t v = size; v < row.vocab;) {
      const int64_t block_end = std::min(row.vocab, (v / kTokenBlock + 1) * kTokenBlock);
      if (row.block_max[v / kTokenBlock] <= row.logits[best[0]]) {
        v = block_end;
        continue;
      }
      for (; v < block_end; ++v) {
        if (row.logits[v] <= row.logits[best[0]]) continue;
        std::pop_heap(best, best + size, before);
        best[size - 1] = static_cast<int32_t>(v);
        std::push_heap(best, best + size, before);
      }
    }
    std::sort_heap(best, best + size, before);
  } else {
    std::sort(best, best + size, before);
  }
}

}  // namespace plumbline
