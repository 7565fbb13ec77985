// GPT-2's alphabet: each byte as one printable character, so that a vocabulary of any bytes is
// text. Bytes that are visible characters of Latin-1 stand for themselves, the others for U+0100
// upwards in order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace plumbline {

void AppendByteLevel(std::string_view bytes, std::string& out);
// The bytes behind a byte-level spelling; nothing when a character is not of the alphabet.
std::optional<std::string> BytesFromByteLevel(std::string_view valid_text);

}  // namespace plumbline
