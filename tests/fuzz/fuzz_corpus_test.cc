// Every input of the corpora once more, in any build: what a fuzzer has found stays mended.
#include <gtest/gtest.h>

#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "tests/fuzz/targets.h"

namespace plumbline {
namespace {

namespace fs = std::filesystem;

struct Target {
  const char* name;
  void (*run)(std::string_view);
};
constexpr Target kTargets[] = {
    {"chat_template", FuzzChatTemplate}, {"http", FuzzHttp},
    {"model_config", FuzzModelConfig},   {"request_body", FuzzRequestBody},
    {"safetensors", FuzzSafetensors},    {"step", FuzzStep},
    {"tokenizer", FuzzTokenizer},
};
// Of the processor: other programs do not count. Sanitizers are left room.
constexpr double kMaxSeconds = 10;

const fs::path kCorpus = fs::path(PLUMBLINE_SOURCE_DIR) / "tests/fuzz/corpus";

class FuzzCorpusTest : public ::testing::TestWithParam<Target> {};

TEST_P(FuzzCorpusTest, EveryInputIsTakenOrRefusedInTime) {
  int num_inputs = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(kCorpus / GetParam().name)) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    SCOPED_TRACE(entry.path().string());
    std::printf("%s\n",
                entry.path().filename().c_str());  // the last one named is the one that crashed
    std::fflush(stdout);
    const std::clock_t begun = std::clock();
    GetParam().run(bytes);
    EXPECT_LT(static_cast<double>(std::clock() - begun) / CLOCKS_PER_SEC, kMaxSeconds);
    ++num_inputs;
  }
  EXPECT_GE(num_inputs, 3);
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpusTest, ::testing::ValuesIn(kTargets),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(FuzzCorporaTest, BelongToTargets) {
  std::set<std::string> corpora, targets;
  for (const fs::directory_entry& entry : fs::directory_iterator(kCorpus)) {
    corpora.insert(entry.path().filename());
  }
  for (const Target& target : kTargets) targets.insert(target.name);
  EXPECT_EQ(corpora, targets);
}

}  // namespace
}  // namespace plumbline
