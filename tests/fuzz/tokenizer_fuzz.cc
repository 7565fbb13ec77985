#include <string>

#include "coordinator/text/tokenizer.h"
#include "kernels/check.h"
#include "tests/fuzz/targets.h"

namespace plumbline {
namespace {

// Words, runs of spaces, digits, contractions, combining marks, scripts without spaces, emoji,
// spelt special tokens.
constexpr std::string_view kText =
    "Hello  world, it's 12345 \t\n\n na\xc3\xafve e\xcc\x81 \xe4\xbd\xa0\xe5\xa5\xbd "
    "\xf0\x9f\x98\x80 <s>[INST] <|im_end|>aaaaaaaa";

}  // namespace

void FuzzTokenizer(std::string_view json) {
  const auto tokenizer = Tokenizer::LoadFromJson(json, "tokenizer.json");
  if (!tokenizer.ok()) return;
  for (const bool is_plain : {false, true}) {
    const auto ids =
        (*tokenizer)->Encode(kText, {.parse_special = !is_plain, .add_special_tokens = !is_plain});
    if (!ids.ok()) continue;  // a pattern of the file may need too many steps
    for (const int32_t id : *ids) {
      PL_CHECK(id >= 0 && id < (*tokenizer)->vocab_size());
      (void)(*tokenizer)->TokenBytes(id);
    }
    const std::string text = (*tokenizer)->Decode(*ids, {.skip_special_tokens = is_plain});
    // Encode refuses what is not UTF-8, so it is the judge of Decode's promise.
    const auto again = (*tokenizer)->Encode(text);
    PL_CHECK(again.ok() || again.status().message().find("UTF-8") == std::string::npos);
  }
}

}  // namespace plumbline
