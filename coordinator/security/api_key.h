// API keys as text, and what is kept of them.
#pragma once

#include <string>
#include <string_view>

namespace plumbline {

// "pl-" and 256 random bits in hex.
std::string MakeApiKey();
// Whether a text has the form of MakeApiKey.
bool IsApiKeyForm(std::string_view text);

// SHA-256, 32 bytes. Without salt or stretching: those make short secrets that people choose slower to guess; a key of
// 256 random bits cannot be guessed, and a plain hash can be looked up.
std::string HashApiKey(std::string_view key);
// Takes the same time wherever the two differ.
bool SameHash(std::string_view a, std::string_view b);

// The key in a header's or metadata's "Bearer KEY"; empty when there is none.
std::string_view BearerKey(std::string_view authorization);

}  // namespace plumbline
