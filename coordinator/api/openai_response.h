// The answers of the OpenAI interface: engine output -> JSON, whole or as the chunks of a stream.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/api/served_model.h"
#include "coordinator/engine/engine.h"
#include "nlohmann/json.hpp"

namespace plumbline {

// Ordered, and with float for fractions: a log-probability is printed with the fewest digits that
// give back the same float, so equal floats print equally wherever they stand.
using ResponseJson = nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool,
                                          int64_t, uint64_t, float>;

// One line, UTF-8.
std::string Print(const ResponseJson& json);

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // those of them that came from the prefix cache
  int64_t completion_tokens = 0;
};

struct ResponseOptions {
  std::string id;
  int64_t created = 0;  // Unix seconds
  const ServedModel* model = nullptr;
  bool include_usage = false;  // in a stream
  bool return_tokens_as_token_ids = false;
  bool skip_special_tokens = true;
};

// State of one answer; not thread-safe. Choices are numbered from 0.
class ResponseFormat {
 public:
  virtual ~ResponseFormat() = default;
  // What is new of a choice, as chunks of a stream. Often none, for text that ends inside a
  // character.
  virtual std::vector<ResponseJson> Chunks(int choice, const GenerationOutput& delta) = 0;
  // The last chunk, when usage was asked for.
  virtual ResponseJson UsageChunk(const Usage& usage) const = 0;
  // The whole answer; choice i is choices[i], all of its output in one.
  virtual ResponseJson Whole(const std::vector<GenerationOutput>& choices, const Usage& usage) = 0;
};

std::unique_ptr<ResponseFormat> MakeChatFormat(const ResponseOptions& options);

struct EchoedPrompt {
  std::string text;
  std::vector<int32_t> tokens;
};
struct CompletionFormatOptions {
  ResponseOptions common;
  int num_choices_per_prompt = 1;
  bool echo = false;
  int32_t num_top_logprobs = -1;      // -1: no "logprobs"
  int32_t num_prompt_logprobs = -1;   // -1: no "prompt_logprobs"
  std::vector<EchoedPrompt> prompts;  // when echoed or scored
};
std::unique_ptr<ResponseFormat> MakeCompletionFormat(CompletionFormatOptions options);

}  // namespace plumbline
