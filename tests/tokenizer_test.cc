// Tokenizer against the Hugging Face `tokenizers` library: ids and decoded text of its vectors
// (tests/golden/tokenizers, made by make_tokenizer_styles.py and make_tokenizer_features.py),
// limits, errors, speed.
#include "coordinator/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "coordinator/text/regex.h"
#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

const std::string kGolden = std::string(PLUMBLINE_SOURCE_DIR) + "/tests/golden/tokenizers/";

std::vector<json> ReadLines(const std::string& path) {
  std::vector<json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
  EXPECT_FALSE(lines.empty()) << path;
  return lines;
}

std::string FixturesPath() {
  const char* path = std::getenv("PLUMBLINE_FIXTURES");
  return path != nullptr ? path : std::string(PLUMBLINE_SOURCE_DIR) + "/../shared/fixtures";
}

std::unique_ptr<Tokenizer> LoadOrDie(const std::string& path) {
  auto tokenizer = Tokenizer::Load(path);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, const std::string& text,
                            bool special = false) {
  auto ids = tokenizer.Encode(text, {.add_special_tokens = special});
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<int32_t>();
}

class Style : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Tokenizer> tokenizer_ = LoadOrDie(kGolden + GetParam() + "/tokenizer.json");
};

TEST_P(Style, GivesTheIdsAndTheTextOfTheReference) {
  for (const json& vector : ReadLines(kGolden + GetParam() + "/vectors.jsonl")) {
    std::string text = vector["text"];
    std::vector<int32_t> ids = Encode(*tokenizer_, text);
    EXPECT_EQ(json(ids), vector["ids"]) << json(text);
    EXPECT_EQ(json(Encode(*tokenizer_, text, true)), vector["ids_special"]) << json(text);
    EXPECT_EQ(tokenizer_->Decode(ids, {.skip_special_tokens = true}), vector["decoded"])
        << json(text);
  }
}

TEST_P(Style, DecodesRandomIdsAsTheReference) {
  for (const json& vector : ReadLines(kGolden + GetParam() + "/decode.jsonl")) {
    std::vector<int32_t> ids = vector["ids"];
    EXPECT_EQ(tokenizer_->Decode(ids), vector["decoded"]) << vector["ids"];
    EXPECT_EQ(tokenizer_->Decode(ids, {.skip_special_tokens = true}), vector["decoded_skip"]);
  }
}

TEST_P(Style, IsUsedByManyThreadsAtOnce) {
  std::vector<json> vectors = ReadLines(kGolden + GetParam() + "/vectors.jsonl");
  std::vector<int> num_wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& wrong : num_wrong) {
    threads.emplace_back([&] {
      for (const json& vector : vectors) {
        wrong += json(*tokenizer_->Encode(vector["text"].get<std::string>())) != vector["ids"];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_wrong, ::testing::Each(0));
}

INSTANTIATE_TEST_SUITE_P(All, Style,
                         ::testing::Values("qwen2", "llama3", "gpt2_digits", "llama2_normalizer",
                                           "llama2_metaspace"));

TEST(Tokenizer, GivesTheIdsOfTheReferenceForEveryFeature) {
  for (const json& feature : ReadLines(kGolden + "features.jsonl")) {
    auto tokenizer = Tokenizer::LoadFromJson(feature["tokenizer"].dump(), feature["name"]);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (const json& test_case : feature["cases"]) {
      std::string text = test_case["text"];
      EXPECT_EQ(json(Encode(**tokenizer, text)), test_case["ids"]) << feature["name"] << json(text);
      EXPECT_EQ(json(Encode(**tokenizer, text, true)), test_case["ids_special"])
          << feature["name"] << json(text);
    }
  }
}

TEST(Tokenizer, ReadsMergesGivenAsStrings) {
  json file = json::parse(std::ifstream(kGolden + "qwen2/tokenizer.json"));
  for (json& merge : file["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  auto tokenizer = Tokenizer::LoadFromJson(file.dump(), "strings");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const json& vector : ReadLines(kGolden + "qwen2/vectors.jsonl")) {
    EXPECT_EQ(json(Encode(**tokenizer, vector["text"])), vector["ids"]);
  }
}

TEST(Tokenizer, LeavesSpecialTokensAsTextWhenAsked) {
  auto tokenizer = LoadOrDie(kGolden + "qwen2/tokenizer.json");
  std::string text = "<|im_start|>user";
  EXPECT_EQ(tokenizer->Encode(text)->front(), 1000);
  auto plain = tokenizer->Encode(text, {.parse_special = false});
  ASSERT_TRUE(plain.ok());
  EXPECT_THAT(*plain, ::testing::Not(::testing::Contains(1000)));
  EXPECT_EQ(tokenizer->Decode(*plain), text);
  // The same text in two parts, none of which is a special token.
  std::vector<int32_t> halves = Encode(*tokenizer, "<|im_start|");
  EXPECT_THAT(halves, ::testing::Not(::testing::Contains(1000)));
}

TEST(Tokenizer, KnowsItsTokens) {
  auto qwen = LoadOrDie(kGolden + "qwen2/tokenizer.json");
  EXPECT_EQ(qwen->vocab_size(), 1002);
  EXPECT_EQ(qwen->IdOf("<|im_end|>"), 1001);
  EXPECT_EQ(qwen->IdOf("no such token"), std::nullopt);
  EXPECT_TRUE(qwen->IsSpecial(1001));
  EXPECT_FALSE(qwen->IsSpecial(5));
  EXPECT_FALSE(qwen->IsSpecial(-1));
  EXPECT_FALSE(qwen->IsSpecial(1 << 30));
  EXPECT_EQ(qwen->TokenString(1000), "<|im_start|>");
  EXPECT_EQ(qwen->TokenString(1002), "");
  std::string bytes;
  for (int32_t id : Encode(*qwen, " naïve 日本")) bytes += qwen->TokenBytes(id);
  EXPECT_EQ(bytes, " naïve 日本");

  auto llama = LoadOrDie(kGolden + "llama2_metaspace/tokenizer.json");
  bytes.clear();
  for (int32_t id : Encode(*llama, "the 日 end")) bytes += llama->TokenBytes(id);
  EXPECT_EQ(bytes, " the 日 end");
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  auto tokenizer = LoadOrDie(kGolden + "qwen2/tokenizer.json");
  for (const char* text :
       {"abc\xff", "abc\xc3", "abc\xed\xa0\x80", "abc\xc0\x80", "abc\xf4\x90\x80\x80"}) {
    auto ids = tokenizer->Encode(text);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 3"));
  }
}

// A post-processor that puts token `id` before every text.
json Frame(const json& id) {
  return {{"type", "TemplateProcessing"},
          {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}}},
          {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", json::array({id})}}}}}};
}

TEST(Tokenizer, RefusesFilesThatNestDeeperThanAStackHolds) {
  const std::string unit = R"({"type":"Sequence","normalizers":[)";
  std::string text = R"({"model":{"type":"BPE","vocab":{},"merges":[]},"normalizer":)";
  for (int i = 0; i < 200'000; ++i) text += unit;
  for (int i = 0; i < 200'000; ++i) text += "]}";
  const auto tokenizer = Tokenizer::LoadFromJson(text + "}", "t.json");
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tokenizer.status().message()),
              HasSubstr("t.json: JSON is nested deeper than 64"));
}

TEST(Tokenizer, NamesWhatItDoesNotSupport) {
  json good = json::parse(std::ifstream(kGolden + "qwen2/tokenizer.json"));
  ASSERT_TRUE(Tokenizer::LoadFromJson(good.dump(), "t.json").ok());
  struct Case {
    const char* pointer;
    json value;
    const char* message;
  };
  const Case cases[] = {
      {"/normalizer", {{"type", "Precompiled"}}, "normalizer \"Precompiled\""},
      {"/normalizer", 5, "normalizer is not an object"},
      {"/pre_tokenizer", {{"type", "UnicodeScripts"}}, "pre_tokenizer \"UnicodeScripts\""},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "[a-z&&[^b]]", "&& inside a class"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(", "regular expression"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Sideways", "Sideways"},
      {"/post_processor", {{"type", "BertProcessing"}}, "post_processor \"BertProcessing\""},
      {"/decoder", {{"type", "WordPiece"}}, "decoder \"WordPiece\""},
      {"/model/type", "Unigram", "\"Unigram\""},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/model/merges/3", json::array({"no such", "parts"}), "merge 3"},
      {"/model/merges", 1, "merges"},
      {"/model/vocab", json::array(), "vocab"},
      {"/model/vocab/the", -1, "\"the\""},
      {"/model/vocab/the", 1LL << 40, "\"the\""},
      {"/model/vocab/the", (1 << 22) + 1, "\"the\""},
      {"/model/unk_token", "<none>", "<none>"},
      {"/added_tokens/1/id", "x", "added_tokens[1]"},
      {"/added_tokens/0", 3, "added_tokens[0]"},
      {"/added_tokens/0/id", UINT64_MAX, "added_tokens[0]"},
      {"/post_processor", Frame(-5), "id -"},
      {"/post_processor", Frame(4000000), "id 4000000"},
      {"/post_processor", Frame(1e300), "id -"},
  };
  for (const Case& bad : cases) {
    json file = good;
    file[json::json_pointer(bad.pointer)] = bad.value;
    auto tokenizer = Tokenizer::LoadFromJson(file.dump(), "t.json");
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << bad.pointer;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(bad.message));
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("t.json"));
  }
  for (const char* text : {"", "{", "[]", "null", "{}"}) {
    EXPECT_FALSE(Tokenizer::LoadFromJson(text, "t.json").ok()) << text;
  }
  EXPECT_EQ(Tokenizer::Load("/no/such/tokenizer.json").status().code(),
            absl::StatusCode::kNotFound);
}

double SecondsToEncode(const Tokenizer& tokenizer, const std::string& text) {
  auto start = std::chrono::steady_clock::now();
  auto ids = tokenizer.Encode(text);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(tokenizer.Decode(*ids), text);
  return seconds;
}

std::string Repeat(const std::string& unit, size_t num_bytes) {
  std::string text;
  while (text.size() < num_bytes) text += unit;
  return text;
}

// Each takes a few hundredths of a second; a step that is quadratic in the text would take minutes.
TEST_P(Style, EncodesAMegabyteOfAnythingWithinSeconds) {
  const char* const units[] = {"The quick brown fox jumps over 13 lazy dogs.\n",
                               "a",
                               "ab",
                               " ",
                               "\n",
                               "\t ",
                               "7",
                               "日本語",
                               "!?",
                               "q\u0316\u0301",
                               "\u0316",
                               "<",
                               "<|im_start|",
                               "<s"};
  for (const char* unit : units) {
    EXPECT_LT(SecondsToEncode(*tokenizer_, "x" + Repeat(unit, 1 << 20)), 10) << unit;
  }
}

TEST(Tokenizer, SortsLongRunsOfMarksInTime) {
  auto tokenizer = LoadOrDie(kGolden + "qwen2/tokenizer.json");
  // NFC orders marks by class; alternating classes are the worst case of an insertion sort.
  std::string marks = Repeat("\u0301\u0316", 1 << 20);
  auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(tokenizer->Encode("a" + marks).ok());
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 10);
}

class PublishedQwen : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string path = FixturesPath() + "/tokenizers/qwen3/tokenizer.json";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << "no third-party tokenizer at " << path;
    auto start = std::chrono::steady_clock::now();
    tokenizer_ = LoadOrDie(path);
    load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::unique_ptr<Tokenizer> tokenizer_;
  double load_seconds_ = 0;
};

TEST_F(PublishedQwen, GivesThePublishedIds) {
  std::string folder = FixturesPath() + "/tokenizers/vectors/";
  std::stringstream input;
  input << std::ifstream(folder + "qwen2.inp").rdbuf();
  std::ifstream output(folder + "qwen2.out");
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::string texts = input.str();
  int num_texts = 0;
  for (size_t begin = 0; begin < texts.size(); ++num_texts) {
    size_t end = std::min(texts.find(separator, begin), texts.size());
    std::string text = texts.substr(begin, end - begin);
    begin = end + separator.size();
    std::string line;
    ASSERT_TRUE(std::getline(output, line));
    std::istringstream numbers(line);
    std::vector<int32_t> expected{std::istream_iterator<int32_t>(numbers), {}};
    EXPECT_EQ(Encode(*tokenizer_, text), expected) << json(text);
  }
  EXPECT_GT(num_texts, 40);
}

TEST_F(PublishedQwen, EncodesAMegabyteInUnderASecond) {
  std::stringstream words;
  unsigned state = 1;
  while (words.tellp() < (1 << 20)) {  // prose-like: words of random letters and lengths
    state = state * 1664525 + 1013904223;
    for (unsigned i = 0; i < 2 + (state >> 16) % 9; ++i) {
      words << "etaoinshrdlcumwfgypbvkjxqz"[((state >> (i + 3)) % 97) * 26 / 97];
    }
    words << ((state >> 24) % 11 == 0 ? ".\n" : " ");
  }
  double seconds = SecondsToEncode(*tokenizer_, words.str());
  RecordProperty("encode_ms_per_mb", static_cast<int>(seconds * 1000));
  RecordProperty("load_ms", static_cast<int>(load_seconds_ * 1000));
  EXPECT_LT(seconds, 5);  // 0.2 s on an idle core; the machine may be busy
}

TEST(Regex, ABadPatternEndsInBoundedTime) {
  const auto bad = Regex::Compile("(a+)+$");  // 2^n steps for n letters that something follows
  ASSERT_TRUE(bad.ok());
  std::string many;  // each too short for the limit of steps
  for (int i = 0; i < 2000; ++i) many += std::string(24, 'a') + "b";
  for (const std::string& text : {std::string(40, 'a') + "b", many}) {
    const auto begun = std::chrono::steady_clock::now();
    EXPECT_EQ(bad->Cut(text).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(30));
  }
}

TEST(Regex, FindsWhatIsFarBehindTheLastMatch) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "\u00e9";  // two bytes each
  text += "bb";
  const auto spans = Regex::Compile("b")->Cut(text);
  ASSERT_TRUE(spans.ok());
  ASSERT_EQ(spans->size(), 3u);
  EXPECT_EQ((*spans)[0].end, 2000u);
  EXPECT_FALSE((*spans)[0].is_match);
  EXPECT_TRUE((*spans)[1].is_match && (*spans)[2].is_match);
  EXPECT_EQ((*spans)[2].end, 2002u);
}

}  // namespace
}  // namespace plumbline
