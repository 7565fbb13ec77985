// Philox4x32-10, the counter-based random generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (SC'11), and the uniform number that draws a token. Integer arithmetic: equal on every machine.
#pragma once

#include <array>
#include <cstdint>

namespace plumbline {

constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// In [0, 1): the first two words of the block at counter (position, 0, 0, 0) under key seed, as 53 bits.
constexpr double UniformDraw(int64_t seed, int32_t position) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  const auto words = Philox4x32({static_cast<uint32_t>(position), 0, 0, 0},
                                {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)});
  return static_cast<double>((uint64_t{words[0]} << 32 | words[1]) >> 11) * 0x1p-53;
}

}  // namespace plumbline
