#include "coordinator/text/model_text.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "coordinator/text/text_file.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxConfigBytes = 64 << 20;
constexpr size_t kMaxTemplateBytes = 4 << 20;

// An absent file is an empty object.
absl::StatusOr<Json> ReadOptionalJson(const std::string& path) {
  absl::StatusOr<std::string> text = ReadTextFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return Json::object();
  if (!text.ok()) return text.status();
  Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  return json;
}

// "<s>" or {"content": "<s>", ...}.
std::optional<std::string> TokenField(const Json& json, const char* key) {
  auto it = json.find(key);
  if (it == json.end()) return std::nullopt;
  const Json& value = it->is_object() && it->contains("content") ? (*it)["content"] : *it;
  return value.is_string() ? std::optional<std::string>(value.get<std::string>()) : std::nullopt;
}

// The template of tokenizer_config.json or chat_template.json: a string, or a list of {"name",
// "template"}.
std::optional<std::string> TemplateField(const Json& json) {
  auto it = json.find("chat_template");
  if (it == json.end()) return std::nullopt;
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return std::nullopt;
  for (const Json& entry : *it) {
    if (entry.is_object() && entry.value("name", Json()) == "default" &&
        entry.value("template", Json()).is_string()) {
      return entry["template"].get<std::string>();
    }
  }
  return std::nullopt;
}

// Adds eos_token_id, a number or a list, at the top or inside text_config. False when there is
// none.
bool AddEosIds(const Json& json, std::set<int32_t>& ids) {
  auto it = json.find("eos_token_id");
  if (it == json.end() || it->is_null()) {
    auto text_config = json.find("text_config");
    return text_config != json.end() && text_config->is_object() && AddEosIds(*text_config, ids);
  }
  bool found = false;
  for (const Json& id : it->is_array() ? *it : Json::array({*it})) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) continue;
    ids.insert(id.get<int32_t>());
    found = true;
  }
  return found;
}

template <typename Number>
void ReadNumber(const Json& json, const char* key, std::optional<Number>& number) {
  const auto it = json.find(key);
  if (it != json.end() && it->is_number()) number = it->get<Number>();
}

GenerationDefaults DefaultsOf(const Json& generation_config) {
  GenerationDefaults defaults;
  ReadNumber(generation_config, "temperature", defaults.temperature);
  ReadNumber(generation_config, "top_p", defaults.top_p);
  ReadNumber(generation_config, "min_p", defaults.min_p);
  ReadNumber(generation_config, "repetition_penalty", defaults.repetition_penalty);
  ReadNumber(generation_config, "top_k", defaults.top_k);
  if (generation_config.value("do_sample", Json(true)) == Json(false)) defaults.temperature = 0;
  return defaults;
}

absl::StatusOr<std::optional<std::string>> ReadTemplate(const std::string& model_dir,
                                                        const std::string& override_path,
                                                        const Json& tokenizer_config) {
  if (!override_path.empty()) {
    PL_ASSIGN_OR_RETURN(std::string source, ReadTextFile(override_path, kMaxTemplateBytes));
    return std::optional<std::string>(std::move(source));
  }
  absl::StatusOr<std::string> file =
      ReadTextFile(model_dir + "/chat_template.jinja", kMaxTemplateBytes);
  if (file.ok()) return std::optional<std::string>(*std::move(file));
  if (!absl::IsNotFound(file.status())) return file.status();
  PL_ASSIGN_OR_RETURN(Json json, ReadOptionalJson(model_dir + "/chat_template.json"));
  std::optional<std::string> source = TemplateField(json);
  return source ? source : TemplateField(tokenizer_config);
}

// A line of output; text that is no UTF-8 cannot get here but would not throw.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

absl::StatusOr<std::string> TextOfLine(const ModelText& model_text, const Json& line) {
  if (!line.is_object()) return absl::InvalidArgumentError("line is not a JSON object");
  if (auto text = line.find("text"); text != line.end()) {
    if (!text->is_string()) return absl::InvalidArgumentError("\"text\" is not a string");
    return text->get<std::string>();
  }
  if (!line.contains("messages")) {
    return absl::InvalidArgumentError("line has neither \"text\" nor \"messages\"");
  }
  if (!model_text.chat_template) {
    return absl::FailedPreconditionError("the model has no chat template");
  }
  ChatRequest request = {.messages = &line["messages"], .add_generation_prompt = false};
  if (auto it = line.find("tools"); it != line.end()) request.tools = &*it;
  if (auto it = line.find("chat_template_kwargs"); it != line.end())
    request.chat_template_kwargs = &*it;
  if (auto it = line.find("add_generation_prompt"); it != line.end()) {
    if (!it->is_boolean()) {
      return absl::InvalidArgumentError("\"add_generation_prompt\" is not a boolean");
    }
    request.add_generation_prompt = it->get<bool>();
  }
  return RenderChat(*model_text.chat_template, request, model_text.tokens);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelText>> LoadModelText(const std::string& model_dir,
                                                         const std::string& override_path) {
  auto text = std::make_unique<ModelText>();
  PL_ASSIGN_OR_RETURN(text->tokenizer, Tokenizer::Load(model_dir + "/tokenizer.json"));
  PL_ASSIGN_OR_RETURN(Json tokenizer_config,
                      ReadOptionalJson(model_dir + "/tokenizer_config.json"));
  PL_ASSIGN_OR_RETURN(Json special_tokens,
                      ReadOptionalJson(model_dir + "/special_tokens_map.json"));
  PL_ASSIGN_OR_RETURN(Json generation_config,
                      ReadOptionalJson(model_dir + "/generation_config.json"));
  PL_ASSIGN_OR_RETURN(Json config, ReadOptionalJson(model_dir + "/config.json"));
  auto token = [&](const char* key) {
    std::optional<std::string> value = TokenField(tokenizer_config, key);
    return value ? value : TokenField(special_tokens, key);
  };
  text->tokens = {.bos_token = token("bos_token"),
                  .eos_token = token("eos_token"),
                  .pad_token = token("pad_token"),
                  .unk_token = token("unk_token")};

  PL_ASSIGN_OR_RETURN(std::optional<std::string> source,
                      ReadTemplate(model_dir, override_path, tokenizer_config));
  if (source) {
    PL_ASSIGN_OR_RETURN(text->chat_template, ChatTemplate::Parse(*source));
  }

  std::set<int32_t> eos_ids;
  if (!AddEosIds(generation_config, eos_ids)) AddEosIds(config, eos_ids);
  if (text->tokens.eos_token) {
    if (std::optional<int32_t> id = text->tokenizer->IdOf(*text->tokens.eos_token))
      eos_ids.insert(*id);
  }
  text->eos_ids.assign(eos_ids.begin(), eos_ids.end());
  text->generation = DefaultsOf(generation_config);
  return text;
}

std::string TokenizeLine(const ModelText& model_text, std::string_view json_line) {
  Json line = Json::parse(json_line, nullptr, /*allow_exceptions=*/false);
  absl::StatusOr<std::string> text = line.is_discarded()
                                         ? absl::InvalidArgumentError("line is not JSON")
                                         : TextOfLine(model_text, line);
  if (!text.ok()) return Dump({{"error", std::string(text.status().message())}});
  absl::StatusOr<std::vector<int32_t>> ids = model_text.tokenizer->Encode(*text);
  if (!ids.ok()) return Dump({{"error", std::string(ids.status().message())}});
  return Dump({{"text", *text}, {"ids", *ids}});
}

}  // namespace plumbline
