#include "coordinator/text/byte_level.h"

#include <array>

#include "coordinator/text/unicode.h"

namespace plumbline {
namespace {

constexpr int kNumCharacters = 0x100 + 68;  // 68 bytes have no visible character of their own

struct Alphabet {
  std::array<std::string, 256> spelling;
  std::array<int16_t, kNumCharacters> byte_of;  // by code point; -1 outside the alphabet

  Alphabet() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      bool visible =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      char32_t c = visible ? static_cast<char32_t>(byte) : next++;
      AppendUtf8(c, spelling[byte]);
      byte_of[c] = static_cast<int16_t>(byte);
    }
  }
};

const Alphabet& GetAlphabet() {
  static const Alphabet& alphabet = *new Alphabet;
  return alphabet;
}

}  // namespace

void AppendByteLevel(std::string_view bytes, std::string& out) {
  const Alphabet& alphabet = GetAlphabet();
  for (char byte : bytes) out += alphabet.spelling[static_cast<uint8_t>(byte)];
}

std::optional<std::string> BytesFromByteLevel(std::string_view text) {
  const Alphabet& alphabet = GetAlphabet();
  std::string bytes;
  for (size_t pos = 0; pos < text.size();) {
    char32_t c = NextCodePoint(text, pos);
    if (c >= kNumCharacters || alphabet.byte_of[c] < 0) return std::nullopt;
    bytes += static_cast<char>(alphabet.byte_of[c]);
  }
  return bytes;
}

}  // namespace plumbline
