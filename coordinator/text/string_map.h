// A hash map from strings that is searched by std::string_view without a copy. (Abseil's own lookup
// knows only absl::string_view, which is another type in libraries built as C++14.)
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"

namespace plumbline {

struct StringViewHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

template <typename Value>
using StringMap = absl::flat_hash_map<std::string, Value, StringViewHash, std::equal_to<>>;
using StringSet = absl::flat_hash_set<std::string, StringViewHash, std::equal_to<>>;

}  // namespace plumbline
