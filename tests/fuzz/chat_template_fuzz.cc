#include <string>

#include "coordinator/text/chat_template.h"
#include "nlohmann/json.hpp"
#include "tests/fuzz/targets.h"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

const Json& Messages() {
  static const Json messages = Json::parse(R"([
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is 2 < 3?"}]},
    {"role": "assistant", "content": null, "reasoning_content": "think",
     "tool_calls": [{"id": "a1", "type": "function", "function": {"name": "add", "arguments": "{\"x\": 1.5}"}}]},
    {"role": "tool", "tool_call_id": "a1", "content": "<think>\nh\u00e9\n</think>\n"},
    {"role": "user", "content": "  Thanks  "}])");
  return messages;
}

const Json& Tools() {
  static const Json tools =
      Json::parse(R"([{"type": "function", "function": {"name": "add", "description": "Adds",
    "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}}])");
  return tools;
}

// One of every kind of value, under the names that the seeds use.
const Json& Variables() {
  static const Json variables = Json::parse(R"({
    "s": "Hello, W\u00f6rld \u00df", "n": 7, "f": 2.5, "neg": -3, "t": true, "z": null, "e": "", "l": [3, 1, 2],
    "w": ["b", "A", "c", "a"], "d": {"b": 1, "a": [1, "x"], "C": null}, "big": 1e16, "small": 1.5e-7,
    "people": [{"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": null}, {"age": 5, "name": "Cy"}],
    "sp": "  a b\t c\n", "html": "<a href='x'>&\"</a>", "multi": "l1\n  l2\n\nl4", "keys": {"items": 1, "x y": 2},
    "u": "\u65e5\u672c\u8a9e\ud83d\ude42e\u0301", "ctl": "a\"b\\c\u0001\u007f\u2028\n\t"})");
  return variables;
}

}  // namespace

void FuzzChatTemplate(std::string_view source) {
  const auto chat_template = ChatTemplate::Parse(std::string(source));
  if (!chat_template.ok()) return;
  (void)chat_template->takes_content_parts();
  (void)RenderChat(
      *chat_template,
      {.messages = &Messages(), .tools = &Tools(), .chat_template_kwargs = &Variables()},
      {.bos_token = "<s>", .eos_token = "</s>"});
}

}  // namespace plumbline
