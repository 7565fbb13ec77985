#include "coordinator/security/api_key.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "kernels/check.h"

namespace plumbline {
namespace {

constexpr std::string_view kPrefix = "pl-";
constexpr absl::string_view kScheme = "Bearer ";
constexpr size_t kKeyBytes = 32;
constexpr size_t kHashBytes = 32;

}  // namespace

std::string MakeApiKey() {
  unsigned char bytes[kKeyBytes];
  PL_CHECK_MSG(RAND_bytes(bytes, sizeof(bytes)) == 1, "no randomness");
  return std::string(kPrefix) +
         absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(bytes), sizeof(bytes)));
}

bool IsApiKeyForm(std::string_view text) {
  return text.starts_with(kPrefix) && text.size() == kPrefix.size() + 2 * kKeyBytes;
}

std::string HashApiKey(std::string_view key) {
  std::string hash(kHashBytes, '\0');
  PL_CHECK(EVP_Digest(key.data(), key.size(), reinterpret_cast<unsigned char*>(hash.data()), nullptr, EVP_sha256(),
                      nullptr) == 1);
  return hash;
}

bool SameHash(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view BearerKey(std::string_view authorization) {
  const absl::string_view value(authorization.data(), authorization.size());
  if (!absl::StartsWithIgnoreCase(value, kScheme)) return {};
  const absl::string_view key = absl::StripAsciiWhitespace(value.substr(kScheme.size()));
  return {key.data(), key.size()};
}

}  // namespace plumbline
