// BlockHash: names what a full KV block of prompt tokens holds, and the state behind it: SHA-256
// over the hash of the block before it and its tokens. Equal hashes mean equal bits in the caches,
// so everything that changes those is in the chain: every token from the first on, and `variant`,
// which names the weights beyond the cluster's own (an adapter and its version; empty for the base
// model). All tokens have the role prompt: what was computed from generated tokens has no hash and
// is not shared, because a prompt of the same tokens need not have the same bits. A cryptographic
// hash, since a user who could make two prompts collide would be shown another's text.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace plumbline {

struct BlockHash {
  std::array<uint8_t, 32> bytes = {};
  bool operator==(const BlockHash&) const = default;
  template <typename State>
  friend State AbslHashValue(State state, const BlockHash& hash) {
    uint64_t word;  // already evenly spread
    std::memcpy(&word, hash.bytes.data(), sizeof(word));
    return State::combine(std::move(state), word);
  }
};

// One hash per full block of kGridTokens tokens.
std::vector<BlockHash> HashPromptBlocks(std::span<const int32_t> prompt, std::string_view variant);

}  // namespace plumbline
