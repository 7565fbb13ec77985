#include "coordinator/engine/block_hash.h"

#include <openssl/sha.h>

#include <string>

#include "parallel/step_plan.h"

namespace plumbline {
namespace {

BlockHash Hash(const std::string& bytes) {
  BlockHash hash;
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), hash.bytes.data());
  return hash;
}

}  // namespace

std::vector<BlockHash> HashPromptBlocks(std::span<const int32_t> prompt, std::string_view variant) {
  std::vector<BlockHash> hashes;
  hashes.reserve(prompt.size() / kGridTokens);
  BlockHash before = Hash(std::string(variant));
  std::string bytes;
  for (size_t end = kGridTokens; end <= prompt.size(); end += kGridTokens) {
    bytes.assign(before.bytes.begin(), before.bytes.end());
    bytes.append(reinterpret_cast<const char*>(prompt.data() + end - kGridTokens),
                 kGridTokens * sizeof(int32_t));
    before = Hash(bytes);
    hashes.push_back(before);
  }
  return hashes;
}

}  // namespace plumbline
