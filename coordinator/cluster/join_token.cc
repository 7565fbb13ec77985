#include "coordinator/cluster/join_token.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include "absl/strings/escaping.h"
#include "kernels/check.h"

namespace plumbline {

std::string MakeJoinToken() {
  unsigned char bytes[32];
  PL_CHECK_MSG(RAND_bytes(bytes, sizeof(bytes)) == 1, "no randomness");
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes), sizeof(bytes)));
}

bool SameToken(std::string_view expected, std::string_view given) {
  return expected.size() == given.size() &&
         CRYPTO_memcmp(expected.data(), given.data(), expected.size()) == 0;
}

}  // namespace plumbline
