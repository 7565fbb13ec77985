// ChatTemplate: a checkpoint's chat template (Jinja), rendered exactly as `transformers` renders it
// with Jinja2: ImmutableSandboxedEnvironment(trim_blocks, lstrip_blocks, loop controls),
// raise_exception, strftime_now, its tojson. Immutable after Parse and cheap to copy; Render may be
// called from any thread. Errors are INVALID_ARGUMENT with line and reason, RESOURCE_EXHAUSTED when
// a limit on steps, depth or sizes is met.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/render_limits.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline {

namespace jinja {
struct Template;
}

class ChatTemplate {
 public:
  static absl::StatusOr<ChatTemplate> Parse(const std::string& source, const RenderLimits& limits = {});

  // `variables` is an object. `now` is what strftime_now() sees, in local time.
  absl::StatusOr<std::string> Render(const nlohmann::ordered_json& variables) const;
  absl::StatusOr<std::string> Render(const nlohmann::ordered_json& variables,
                                     std::time_t now) const;

  // Whether the template walks over a message's content as a list of parts. One that does not is
  // given joined text.
  bool takes_content_parts() const;
  const std::string& source() const;

 private:
  ChatTemplate(std::shared_ptr<const jinja::Template> parsed, const RenderLimits& limits)
      : parsed_(std::move(parsed)), limits_(limits) {}
  std::shared_ptr<const jinja::Template> parsed_;
  RenderLimits limits_;
};

// Arguments of one rendering, as an OpenAI chat request has them. Nothing is owned.
struct ChatRequest {
  const nlohmann::ordered_json* messages = nullptr;  // array of objects
  const nlohmann::ordered_json* tools = nullptr;     // array, or null for none
  bool add_generation_prompt = true;
  const nlohmann::ordered_json* chat_template_kwargs =
      nullptr;  // object of further variables, or null
};

// Token strings a template sees as bos_token, eos_token, ...; one that is absent is undefined
// there.
struct SpecialTokenStrings {
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  std::optional<std::string> pad_token;
  std::optional<std::string> unk_token;
};

// Renders a conversation. Before that, tool_calls[].function.arguments given as JSON text become
// mappings (templates walk over them), and lists of text parts become text where the template
// expects text.
absl::StatusOr<std::string> RenderChat(const ChatTemplate& chat_template,
                                       const ChatRequest& request,
                                       const SpecialTokenStrings& tokens);

}  // namespace plumbline
