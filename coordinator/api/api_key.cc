#include "coordinator/api/api_key.h"

#include <openssl/crypto.h>

namespace plumbline {

bool IsAuthorized(std::string_view authorization, const std::string& api_key) {
  if (api_key.empty()) return true;
  const std::string wanted = "Bearer " + api_key;
  return authorization.size() == wanted.size() &&
         CRYPTO_memcmp(authorization.data(), wanted.data(), wanted.size()) == 0;
}

}  // namespace plumbline
