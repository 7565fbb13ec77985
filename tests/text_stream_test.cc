// Stop strings and text: found wherever the pieces are cut, never leaked, nothing lost; through the
// engine with the demo model's tokenizer.
#include "coordinator/engine/text_stream.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "coordinator/engine/engine.h"
#include "coordinator/text/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/fake_runner.h"

namespace plumbline {
namespace {

std::string ShownInPieces(const std::string& text, std::vector<std::string> stops, size_t piece,
                          bool include_stop = false) {
  StopMatcher matcher(std::move(stops), include_stop);
  std::string shown;
  for (size_t i = 0; i < text.size(); i += piece) shown += matcher.Push(text.substr(i, piece));
  return shown + matcher.Finish() + "|" + matcher.match();
}

TEST(StopMatcherTest, HoldsBackWhatMayBeginAStopString) {
  StopMatcher matcher({"END", "\n\n"}, false);
  EXPECT_EQ(matcher.Push("one\n"), "one");
  EXPECT_EQ(matcher.Push("two E"), "\ntwo ");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("Ough"), "ENOugh");
  EXPECT_EQ(matcher.Push("x\n\ny"), "x");
  EXPECT_EQ(matcher.match(), "\n\n");
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcherTest, WithoutAMatchNothingIsLost) {
  EXPECT_EQ(ShownInPieces("ababab", {"abac"}, 1), "ababab|");
  EXPECT_EQ(ShownInPieces("ends in ab", {"abc"}, 3), "ends in ab|");
  EXPECT_EQ(ShownInPieces("plain", {}, 2), "plain|");
}

TEST(StopMatcherTest, TheCutOfThePiecesDoesNotMatter) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 20; ++i) text += "ab"[random() % 2];
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 3; ++i) {
      std::string stop;
      for (size_t n = 1 + random() % 6; n > 0; --n) stop += "ab"[random() % 2];
      stops.push_back(stop);
    }
    // By definition: the shortest beginning of the text that ends with a stop string; the longest
    // of these.
    std::string expected = text + "|";
    for (size_t end = 1; end <= text.size(); ++end) {
      std::string longest;
      for (const std::string& stop : stops) {
        if (text.substr(0, end).ends_with(stop) && stop.size() > longest.size()) longest = stop;
      }
      if (longest.empty()) continue;
      expected = text.substr(0, end - longest.size()) + "|" + longest;
      break;
    }
    for (size_t piece = 1; piece <= 7; ++piece) {
      ASSERT_EQ(ShownInPieces(text, stops, piece), expected) << text;
    }
  }
}

// The engine with the demo model's tokenizer; its model says `text`.
class EngineTextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(PLUMBLINE_SOURCE_DIR "/deploy/demo_model/model/tokenizer.json");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }

  GenerationOutput Say(const std::string& text, GenerationRequest request,
                       std::vector<int32_t> eos = {}) {
    const std::vector<int32_t> tokens = *tokenizer_->Encode(text);
    InlineRunner runner;
    size_t next = 0;
    runner.damage = [&](StepResult& result) { result.sequences[0].token = tokens.at(next++); };
    EngineOptions options = Options();
    options.vocab_size = tokenizer_->vocab_size();
    options.eos_token_ids = std::move(eos);
    request.prompt = {1, 2, 3};
    request.max_tokens = static_cast<int64_t>(tokens.size());
    const std::unique_ptr<Engine> engine = Engine::Create(options, &runner, tokenizer_.get());
    GenerationOutput output = RunOne(*engine, std::move(request));
    EXPECT_TRUE(std::equal(output.tokens.begin(), output.tokens.end(), tokens.begin()));
    return output;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(EngineTextTest, TextIsWhole) {
  const std::string text = "Gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80 world";
  const GenerationOutput output = Say(text, {});
  EXPECT_EQ(output.text, text);
  EXPECT_EQ(output.finish, FinishReason::kLength);
}

TEST_F(EngineTextTest, AStopStringOverSeveralTokensEndsTheTextBeforeIt) {
  GenerationRequest request;
  request.stop = {"never", "k, ju"};
  GenerationOutput output = Say("The quick, jumping fox", request);
  EXPECT_EQ(output.text, "The quic");
  EXPECT_EQ(output.stop_match, "k, ju");
  EXPECT_EQ(output.finish, FinishReason::kStop);
  request.include_stop = true;
  output = Say("The quick, jumping fox", request);
  EXPECT_EQ(output.text, "The quick, ju");
}

TEST_F(EngineTextTest, HeldBackTextIsGivenWhenTheOutputEnds) {
  GenerationRequest request;
  request.stop = {" fox!"};
  const GenerationOutput output = Say("The quick fox", request);
  EXPECT_EQ(output.text, "The quick fox");
  EXPECT_EQ(output.finish, FinishReason::kLength);
}

TEST_F(EngineTextTest, TheEndOfSequenceTokenIsCountedButNotShown) {
  const int32_t eos = tokenizer_->Encode("a b")->back();
  GenerationRequest request;
  GenerationOutput output = Say("a b", request, {eos});
  EXPECT_EQ(output.text, "a");
  EXPECT_EQ(output.finish, FinishReason::kStop);
  EXPECT_EQ(output.tokens.back(), eos);
  request.include_stop = true;
  EXPECT_EQ(Say("a b", request, {eos}).text, "a b");
}

TEST(StopMatcherTest, IncludedStopStringIsShown) {
  EXPECT_EQ(ShownInPieces("go. stop here", {"stop"}, 2, true), "go. stop|stop");
}

}  // namespace
}  // namespace plumbline
