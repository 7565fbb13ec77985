// ModelText: everything about text that a model directory holds: tokenizer, chat template, special
// tokens, end ids. Immutable after loading; shared by all threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace plumbline {

// What generation_config.json says of sampling; absent where it says nothing.
struct GenerationDefaults {
  std::optional<float> temperature;  // 0 when the file turns sampling off
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int32_t> top_k;
};

struct ModelText {
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
  SpecialTokenStrings tokens;
  std::vector<int32_t> eos_ids;  // ascending; generation stops at any of them
  GenerationDefaults generation;
};

// Reads tokenizer.json (required), tokenizer_config.json, chat_template.jinja or
// chat_template.json, special_tokens_map.json, generation_config.json and config.json of
// `model_dir`. The template is the first of: the file `chat_template_override_path` (when not
// empty), chat_template.jinja, chat_template.json, tokenizer_config.json's "chat_template" (of
// several named ones, "default"). End ids are the union of eos_token_id in generation_config.json,
// or where that is absent in config.json, and the tokenizer's eos_token.
absl::StatusOr<std::unique_ptr<ModelText>> LoadModelText(
    const std::string& model_dir, const std::string& chat_template_override_path = "");

// One line of `plumbline tokenize`. `json_line` is {"text": ...} or {"messages": ..., "tools"?,
// "add_generation_prompt"?, "chat_template_kwargs"?}. Returns one JSON line without its newline:
// {"text": TEXT, "ids": [...]} or {"error": REASON}. Adds no special tokens of its own; special
// tokens spelt out in the text count as such.
std::string TokenizeLine(const ModelText& model_text, std::string_view json_line);

}  // namespace plumbline
