// The secret that lets workers join.
#pragma once

#include <string>
#include <string_view>

namespace plumbline {

// 256 random bits, in hex.
std::string MakeJoinToken();

// Takes the same time wherever the two differ, so that a stranger learns nothing by trying.
bool SameToken(std::string_view expected, std::string_view given);

}  // namespace plumbline
