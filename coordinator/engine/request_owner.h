// RequestOwner: whose request it is, and what that gives it when requests compete.
#pragma once

#include <cstdint>
#include <string>

namespace plumbline {

struct RequestOwner {
  int64_t key_id = 0;    // of the API key; 0: the operator, or everyone where no key is needed
  std::string name;      // the key's, for people
  int64_t priority = 0;  // higher ones go first, always
  int64_t share = 1;     // within a priority, of the tokens computed; at least 1
};

}  // namespace plumbline
