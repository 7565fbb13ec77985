#include "coordinator/text/chat_template.h"

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/interpreter.h"
#include "coordinator/text/jinja/parser.h"
#include "coordinator/text/json_fields.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxJsonDepth = 100;

absl::Status ParseToolArguments(Json& message, size_t index) {
  auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return absl::OkStatus();
  for (size_t i = 0; i < calls->size(); ++i) {
    Json& call = (*calls)[i];
    if (!call.is_object()) continue;
    Json& function = call.contains("function") ? call["function"] : call;
    if (!function.is_object()) continue;
    auto arguments = function.find("arguments");
    if (arguments == function.end() || !arguments->is_string()) continue;
    const std::string& text = arguments->get_ref<const std::string&>();
    if (NestsDeeperThan(text, kMaxJsonDepth)) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", index, "].tool_calls[", i,
                                                     "].function.arguments is "
                                                     "nested deeper than ",
                                                     kMaxJsonDepth, " levels"));
    }
    Json parsed =
        text.empty() ? Json::object() : Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!parsed.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", index, "].tool_calls[", i,
                                                     "].function.arguments is not a JSON object"));
    }
    *arguments = std::move(parsed);
  }
  return absl::OkStatus();
}

// [{"type": "text", "text": A}, {"type": "text", "text": B}] -> "A\nB". Lists with other parts are
// left as they are.
void JoinTextParts(Json& message) {
  auto content = message.find("content");
  if (content == message.end() || !content->is_array()) return;
  std::string joined;
  for (const Json& part : *content) {
    if (!part.is_object() || part.value("type", Json()) != "text" ||
        !part.value("text", Json()).is_string())
      return;
    if (&part != &content->front()) joined += '\n';
    joined += part["text"].get_ref<const std::string&>();
  }
  *content = std::move(joined);
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(const std::string& source, const RenderLimits& limits) {
  PL_ASSIGN_OR_RETURN(std::shared_ptr<const jinja::Template> parsed, jinja::ParseTemplate(source));
  return ChatTemplate(std::move(parsed), limits);
}

absl::StatusOr<std::string> ChatTemplate::Render(const Json& variables) const {
  return Render(variables, std::time(nullptr));
}

absl::StatusOr<std::string> ChatTemplate::Render(const Json& variables, std::time_t now) const {
  if (!variables.is_object())
    return absl::InvalidArgumentError("chat template: variables are not an object");
  std::optional<jinja::Value> values = jinja::FromJson(variables, kMaxJsonDepth);
  if (!values) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template: arguments nest deeper than ", kMaxJsonDepth, " levels"));
  }
  return jinja::Render(*parsed_, *values, now, limits_);
}

bool ChatTemplate::takes_content_parts() const { return parsed_->loops_over_content; }

const std::string& ChatTemplate::source() const { return parsed_->source; }

absl::StatusOr<std::string> RenderChat(const ChatTemplate& chat_template,
                                       const ChatRequest& request,
                                       const SpecialTokenStrings& tokens) {
  if (request.messages == nullptr || !request.messages->is_array()) {
    return absl::InvalidArgumentError("messages is not an array");
  }
  Json messages = *request.messages;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "] is not an object"));
    }
    PL_RETURN_IF_ERROR(ParseToolArguments(messages[i], i));
    if (!chat_template.takes_content_parts()) JoinTextParts(messages[i]);
  }
  Json variables = Json::object();
  auto set_token = [&](const char* name, const std::optional<std::string>& token) {
    if (token) variables[name] = *token;
  };
  set_token("bos_token", tokens.bos_token);
  set_token("eos_token", tokens.eos_token);
  set_token("pad_token", tokens.pad_token);
  set_token("unk_token", tokens.unk_token);
  if (request.chat_template_kwargs != nullptr && !request.chat_template_kwargs->is_null()) {
    if (!request.chat_template_kwargs->is_object()) {
      return absl::InvalidArgumentError("chat_template_kwargs is not an object");
    }
    for (const auto& [name, value] : request.chat_template_kwargs->items()) {
      if (name == "messages" || name == "tools" || name == "add_generation_prompt") {
        return absl::InvalidArgumentError(
            absl::StrCat("chat_template_kwargs must not contain \"", name, "\""));
      }
      variables[name] = value;
    }
  }
  bool has_tools = request.tools != nullptr && !request.tools->is_null();
  if (has_tools && !request.tools->is_array())
    return absl::InvalidArgumentError("tools is not an array");
  // transformers passes null for what was not given.
  if (!variables.contains("documents")) variables["documents"] = nullptr;
  variables["messages"] = std::move(messages);
  variables["tools"] = has_tools && !request.tools->empty() ? *request.tools : Json(nullptr);
  variables["add_generation_prompt"] = request.add_generation_prompt;
  return chat_template.Render(variables);
}

}  // namespace plumbline
