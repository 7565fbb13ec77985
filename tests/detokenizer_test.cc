// Detokenizer: the pieces it returns are whole characters and, joined, are the text of all tokens.
// The whole text itself is compared with the reference in tokenizer_test.
#include "coordinator/text/detokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "coordinator/text/unicode.h"
#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

using nlohmann::json;

const std::string kGolden = std::string(PLUMBLINE_SOURCE_DIR) + "/tests/golden/tokenizers/";

class DetokenizerOf : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(kGolden + GetParam() + "/tokenizer.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::string Stream(const std::vector<int32_t>& ids, const DecodeOptions& options) {
    Detokenizer detokenizer(*tokenizer_, options);
    std::string text;
    for (int32_t id : ids) {
      std::string piece = detokenizer.Push(id);
      EXPECT_EQ(ValidUtf8Prefix(piece), piece.size()) << json(ids);
      text += piece;
    }
    std::string rest = detokenizer.Finish();
    EXPECT_EQ(ValidUtf8Prefix(rest), rest.size()) << json(ids);
    return text + rest;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(DetokenizerOf, RandomIdsGivesTheTextTheReferenceDecodes) {
  std::ifstream file(kGolden + GetParam() + "/decode.jsonl");
  int num_lines = 0;
  for (std::string line; std::getline(file, line); ++num_lines) {
    json vector = json::parse(line);
    std::vector<int32_t> ids = vector["ids"];
    EXPECT_EQ(Stream(ids, {}), vector["decoded"]) << line;
    EXPECT_EQ(Stream(ids, {.skip_special_tokens = true}), vector["decoded_skip"]) << line;
  }
  EXPECT_EQ(num_lines, 200);
}

TEST_P(DetokenizerOf, RandomIdsGivesTheTextOfAllAtOnce) {
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    std::vector<int32_t> ids(random() % 30);
    // Half of them from the bytes at the start of the vocabulary, where characters are cut.
    for (int32_t& id : ids) id = random() % (random() % 2 ? 300 : tokenizer_->vocab_size() + 2);
    EXPECT_EQ(Stream(ids, {}), tokenizer_->Decode(ids)) << json(ids);
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, DetokenizerOf,
                         ::testing::Values("qwen2", "llama3", "gpt2_digits", "llama2_normalizer",
                                           "llama2_metaspace"));

// Text must not wait for the end of the answer: at most one character (byte level) or one run of
// bytes is held back.
TEST_P(DetokenizerOf, TextIsNotHeldBackLongerThanACharacter) {
  std::string text = "One word, then 日本 and a smile 🙂 with no end";
  auto ids = tokenizer_->Encode(text);
  ASSERT_TRUE(ids.ok());
  Detokenizer detokenizer(*tokenizer_);
  std::string streamed;
  for (size_t i = 0; i < ids->size(); ++i) {
    streamed += detokenizer.Push((*ids)[i]);
    std::span<const int32_t> seen(ids->data(), i + 1);
    std::string whole = tokenizer_->Decode(seen);
    size_t cut =
        whole.find("\xEF\xBF\xBD");  // an unfinished character, decoded as if it were the end
    std::string certain = whole.substr(0, std::min(cut, whole.size()));
    bool in_byte_run = tokenizer_->TokenString((*ids)[i]).starts_with("<0x");
    if (!in_byte_run) {
      EXPECT_EQ(streamed, certain) << i;
    }
  }
}

TEST_P(DetokenizerOf, IsAsNewAfterFinish) {
  auto ids = tokenizer_->Encode("a naïve start");
  ASSERT_TRUE(ids.ok());
  Detokenizer detokenizer(*tokenizer_);
  for (int round = 0; round < 2; ++round) {
    std::string text;
    for (int32_t id : *ids) text += detokenizer.Push(id);
    EXPECT_EQ(text + detokenizer.Finish(), "a naïve start") << round;
  }
}

}  // namespace
}  // namespace plumbline
