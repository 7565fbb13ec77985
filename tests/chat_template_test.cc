// ChatTemplate against Jinja2 in the environment that `transformers` sets up: renderings made by
// tests/golden/make_chat_golden.py of real templates and of every feature of the language; limits;
// requests.
#include "coordinator/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "coordinator/text/model_text.h"
#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

const std::string kRoot = PLUMBLINE_SOURCE_DIR;
const std::string kGolden = kRoot + "/tests/golden/chat_templates/";
constexpr std::time_t kNow = 1700049600;  // 2023-11-15 12:00 UTC, as in make_chat_golden.py

std::vector<Json> ReadLines(const std::string& path) {
  std::vector<Json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  EXPECT_FALSE(lines.empty()) << path;
  return lines;
}

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string FixturesPath() {
  const char* path = std::getenv("PLUMBLINE_FIXTURES");
  return path != nullptr ? path : kRoot + "/../shared/fixtures";
}

absl::StatusOr<std::string> Render(const std::string& source, const Json& variables) {
  auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return parsed.status();
  return parsed->Render(variables, kNow);
}

// Equal text, or an error on both sides.
void ExpectAsGolden(const absl::StatusOr<std::string>& rendered, const Json& golden,
                    const std::string& what) {
  if (golden.contains("error")) {
    EXPECT_FALSE(rendered.ok()) << what << "\nrendered: " << *rendered
                                << "\nreference: " << golden["error"];
    return;
  }
  ASSERT_TRUE(rendered.ok()) << what << "\n" << rendered.status();
  EXPECT_EQ(*rendered, golden["expected"].get<std::string>()) << what;
}

TEST(Jinja, DoesEveryFeatureAsTheReference) {
  std::vector<Json> lines = ReadLines(kGolden + "features.jsonl");
  const Json& variables = lines[0]["variables"];
  for (size_t i = 1; i < lines.size(); ++i) {
    ExpectAsGolden(Render(lines[i]["source"], variables), lines[i], lines[i]["source"]);
  }
  EXPECT_GT(lines.size(), 500u);
}

void ExpectTemplateAsGolden(const std::string& template_path, const std::string& golden_path) {
  auto parsed = ChatTemplate::Parse(ReadFile(template_path));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  int num_errors = 0;
  for (const Json& line : ReadLines(golden_path)) {
    ExpectAsGolden(parsed->Render(line["variables"], kNow), line,
                   template_path + " " + line["variables"].dump());
    num_errors += line.contains("error");
  }
  EXPECT_GT(num_errors, 0);  // the cases hold conversations that a template refuses
}

TEST(ChatTemplate, RendersTheDemoModelsTemplate) {
  ExpectTemplateAsGolden(kRoot + "/deploy/demo_model/chat_template.jinja",
                         kGolden + "demo_model.jsonl");
}

class PublishedTemplate : public ::testing::TestWithParam<const char*> {};

TEST_P(PublishedTemplate, RendersAsTheReference) {
  std::string path = FixturesPath() + "/chat_templates/" + GetParam() + ".jinja";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no third-party template at " << path;
  ExpectTemplateAsGolden(path, kGolden + GetParam() + ".jsonl");
}

INSTANTIATE_TEST_SUITE_P(Qwen, PublishedTemplate,
                         ::testing::Values("Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B",
                                           "Qwen3.5-4B"));

TEST(Jinja, ErrorsNameLineAndReason) {
  auto error = [](const std::string& source) {
    auto rendered = Render(source, {{"s", "text"}});
    EXPECT_EQ(rendered.status().code(), absl::StatusCode::kInvalidArgument) << source;
    return std::string(rendered.status().message());
  };
  EXPECT_THAT(error("\n\n{{ raise_exception('no ' + s) }}"), HasSubstr("line 3: no text"));
  EXPECT_THAT(error("{% if true %}\n{{ nothing.x }}{% endif %}"),
              HasSubstr("line 2: 'nothing' is undefined"));
  EXPECT_THAT(error("{{ s.x.y }}"), HasSubstr("has no attribute 'x'"));
  EXPECT_THAT(error("a\n{% endfor %}"), HasSubstr("line 2"));
  EXPECT_THAT(error("a\n{% extends 'x' %}"), HasSubstr("line 2: unknown tag 'extends'"));
  EXPECT_THAT(error("{{ s|sparkle }}"), HasSubstr("no filter named 'sparkle'"));
  EXPECT_THAT(error("{{ s is sparkling }}"), HasSubstr("no test named 'sparkling'"));
  EXPECT_THAT(error("{{ s + 1 }}"), HasSubstr("can only concatenate str"));
}

// Expectations made by Jinja2 3.1.6; "ERROR" where it refuses.
TEST(Jinja, LazyFiltersReturnGenerators) {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ z|selectattr('a', 'equalto', 1)|list }}{{ 0|map('upper')|list }}{{ ''|reject|join }}",
       "[][]"},
      {"{{ 'y' if l|select('gt', 9) else 'n' }}{{ 'y' if l|select('gt', 9)|list else 'n' }}", "yn"},
      {"{% set g = l|select('gt', 1) %}{{ g|list }}{{ g|list }}", "[3, 2][]"},
      {"{% set g = l|map('string') %}{% for x in g %}{{ x }}{{ loop.length }}{% endfor %}{{ g|join "
       "}}",
       "331323"},
      {"{{ 3 in l|select('gt', 1) }}{{ 9 in l|unique }}{{ (l|reverse)[0] is defined }}",
       "TrueFalseFalse"},
      {"{{ l|map('abs') is iterable }}{{ l|map('abs') is sequence }}{{ l|map('abs') == l }}",
       "TrueFalseFalse"},
      {"{{ l|map('abs')|reverse|length }}{{ l|batch(2)|first }}", "3[3, 1]"},
      {"{% for k, v in {'a': 1}|items %}{{ k }}{{ v }}{% endfor %}", "a1"},
      {"{{ l|map('abs')|length }}", "ERROR"},
      {"{{ l|map('abs')|tojson }}", "ERROR"},
      {"{{ l|map('abs')|last }}", "ERROR"},
      {"{{ l|select + [1] }}", "ERROR"},
      {"{{ (l|select)[1:] }}", "ERROR"},
      {"{{ {'a': 1}|items|length }}", "ERROR"},
      {"{{ l|reverse|tojson }}", "ERROR"},
      {"{{ 5|map('abs')|list }}", "ERROR"},
  };
  for (const auto& [source, expected] : cases) {
    auto rendered = Render(source, {{"z", nullptr}, {"l", {3, 1, 2}}});
    EXPECT_EQ(rendered.ok() ? *rendered : "ERROR", expected) << source << rendered.status();
  }
}

TEST(Jinja, EveryTemplateEndsWithinItsLimits) {
  auto repeat = [](const std::string& unit, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += unit;
    return text;
  };
  const std::string sources[] = {
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('aaaa') }}",
      "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s "
      "%}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% "
      "endfor %}{{ ns.s }}",
      "{% set ns = namespace(s=[]) %}{% for i in range(50000) %}{% set ns.s = [ns.s] %}{% endfor "
      "%}{{ ns.s }}",
      "{{ 'a' * 9999999999 }}",
      "{{ [1] * 9999999999 }}",
      "{{ ('a' * 600000)|replace('a', 'b' * 60000) }}",
      "{{ ['aaaaaaaaaaaaaaaa' * 1000000] * 1000 }}",
      "{{ 'a'.center(99999999999) }}",
      "{{ 'a'|indent(99999999999, true) }}",
      "{{ 'a'.center(60000000, 'b' * 60000000) }}",
      "{{ '%d' % 1e300 }}",
      "{{ '%x' % (1e308 * 10) }}",
      // Cheap to make, dear to search and to compare.
      "{% set s = 'a' * 30000000 %}{{ s in ('a' * 15000000 + 'b') ~ s }}{{ ('a' * 1000000 + 'b') "
      "in s }}",
      "{% set s = 'a' * 30000000 %}{{ s.count('a' * 1000000 + 'b') }}",
      "{% set s = 'a' * 30000000 %}{{ s.split('a' * 1000000 + 'b') }}",
      "{% set s = 'a' * 30000000 %}{{ s.rfind('b' + 'a' * 1000000) }}",
      "{% set s = 'a' * 30000000 %}{{ s.partition('a' * 1000000 + 'b') }}",
      "{% set s = 'a' * 30000000 %}{{ s|replace('a' * 1000000 + 'b', '') }}",
      "{% set s = 'a' * 30000000 %}{% set t = 'a' * 30000000 %}{% for i in range(99999) %}{{ s == "
      "t }}{% endfor %}",
      "{% set s = 'a' * 30000000 %}{% for i in range(99999) %}{% if s|length %}{% endif %}{% "
      "endfor %}",
      "{{ range(99999999999) }}",
      "{{ '%99999999999d' % 1 }}",
      "{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxx' * 1000000 }}{% endfor %}",
      repeat("(", 100000),
      repeat("{% if 1 %}", 100000),
      "{{ " + repeat("(", 100000) + "1" + repeat(")", 100000) + " }}",
      "{{ " + repeat("-", 100000) + "1 }}",
      "{{ 1" + repeat(" + 1", 100000) + " }}",
      "{{ a" + repeat(".b", 100000) + " }}",
      "{{ a" + repeat("|e", 100000) + " }}",
      "{{ " + repeat("not ", 100000) + "1 }}",
      "{{ 1" + repeat(" if 1 else 1", 100000) + " }}",
      "{{ 1" + repeat(" is number", 100000) + " }}",
  };
  for (const std::string& source : sources) {
    const auto begun = std::chrono::steady_clock::now();
    absl::StatusOr<std::string> rendered = Render(source, Json::object());
    EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(30))
        << source.substr(0, 100);
    if (source.starts_with("((")) {
      EXPECT_TRUE(rendered.ok());  // the control: this is only text
      continue;
    }
    EXPECT_FALSE(rendered.ok()) << source.substr(0, 100);
  }
  Json deep = 1;
  for (int i = 0; i < 300; ++i) deep = Json::array({std::move(deep)});
  EXPECT_FALSE(Render("{{ x }}", {{"x", deep}}).ok());
}

// What Python's str.center and str.zfill do.
TEST(Jinja, PadsToAnyWidth) {
  EXPECT_EQ(*Render("{{ 'ab'.center(5, '\u00e9') }}|{{ 'ab'.ljust(-9223372036854775807) }}|{{ "
                    "'ab'.zfill(-9223372036854775807) }}",
                    Json::object()),
            "\u00e9\u00e9ab\u00e9|ab|ab");
  EXPECT_FALSE(Render("{{ 'ab'.center(5, 'xy') }}", Json::object()).ok());
  EXPECT_FALSE(Render("{{ 'ab'.center(5, '') }}", Json::object()).ok());
}

TEST(Jinja, ObjectsThatReferToThemselvesArePrintedAndFreed) {
  auto rendered = Render(
      "{% set ns = namespace() %}{% set ns.me = ns %}{% macro m() %}1{% endmacro %}{% set ns.m = m "
      "%}"
      "{% for i in range(3) %}{% macro inner() %}{{ i }}{% endmacro %}{% set ns.inner = inner %}{% "
      "set ns.l = loop %}"
      "{% endfor %}{{ ns.inner() }}{{ ns.me.me.m() }}{{ ns.l.index }}",
      Json::object());
  ASSERT_TRUE(rendered.ok()) << rendered.status();
  EXPECT_EQ(*rendered, "213");
}

class Request : public ::testing::Test {
 protected:
  absl::StatusOr<std::string> Chat(const std::string& source, const char* messages,
                                   const char* kwargs = "null", const char* tools = "null") {
    auto parsed = ChatTemplate::Parse(source);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    Json m = Json::parse(messages), k = Json::parse(kwargs), t = Json::parse(tools);
    return RenderChat(
        *parsed,
        {.messages = &m, .tools = &t, .add_generation_prompt = true, .chat_template_kwargs = &k},
        {.bos_token = "<s>"});
  }
};

TEST_F(Request, PassesVariablesAsTransformersDoes) {
  EXPECT_EQ(
      *Chat("{{ bos_token }}{{ eos_token is defined }}{{ tools is none }}{{ documents is none }}"
            "{{ add_generation_prompt }}{{ enable_thinking }}{{ messages|length }}",
            "[{}]", R"({"enable_thinking": false})"),
      "<s>FalseTrueTrueTrueFalse1");
  EXPECT_EQ(*Chat("{{ tools[0].a }}", "[]", "null", R"([{"a": 5}])"), "5");
}

TEST_F(Request, ParsesToolArgumentsGivenAsText) {
  const char* walk =
      "{% for k, v in messages[0].tool_calls[0].function.arguments.items() %}{{ k }}={{ v }};{% "
      "endfor %}";
  EXPECT_EQ(
      *Chat(
          walk,
          R"([{"tool_calls": [{"function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [true]}"}}]}])"),
      "b=1;a=[True];");
  EXPECT_EQ(
      *Chat(walk, R"([{"tool_calls": [{"function": {"name": "f", "arguments": {"x": "y"}}}]}])"),
      "x=y;");
  EXPECT_EQ(*Chat(walk, R"([{"tool_calls": [{"function": {"name": "f", "arguments": ""}}]}])"), "");
  auto bad =
      Chat(walk, R"([{}, {"tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]}])");
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.status().message()),
              HasSubstr("messages[1].tool_calls[0].function.arguments"));
}

TEST_F(Request, RefusesToolArgumentsThatNestTooDeep) {
  for (const int depth : {90, 200, 1'000'000}) {
    const std::string arguments =
        "{\"a\":" + std::string(depth, '[') + std::string(depth, ']') + "}";
    const Json messages = {{{"tool_calls", {{{"function", {{"arguments", arguments}}}}}}}};
    const auto parsed = ChatTemplate::Parse("{{ messages|length }}");
    const auto text = RenderChat(*parsed, {.messages = &messages}, {});
    EXPECT_EQ(text.ok(), depth == 90) << text.status();
    if (depth != 90) {
      EXPECT_THAT(std::string(text.status().message()),
                  HasSubstr("arguments is nested deeper than 100"));
    }
  }
}

TEST_F(Request, JoinsTextPartsForTemplatesThatExpectText) {
  const char* parts =
      R"([{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])";
  EXPECT_EQ(*Chat("{{ messages[0].content }}", parts), "a\nb");
  EXPECT_EQ(*Chat("{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}", parts), "[a][b]");
  EXPECT_EQ(*Chat("{% for p in messages[0]['content'] %}[{{ p.text }}]{% endfor %}", parts),
            "[a][b]");
  EXPECT_EQ(*Chat("{% for p in messages[0].content | selectattr('type', 'equalto', 'text') | list "
                  "%}[{{ p.text }}]{% endfor %}",
                  parts),
            "[a][b]");
}

TEST_F(Request, RefusesWhatIsNoRequest) {
  EXPECT_FALSE(Chat("", "{}").ok());
  EXPECT_FALSE(Chat("", "[1]").ok());
  EXPECT_FALSE(Chat("", "[]", "[]").ok());
  EXPECT_FALSE(Chat("", "[]", R"({"messages": []})").ok());
  EXPECT_FALSE(Chat("", "[]", "null", "{}").ok());
  EXPECT_TRUE(Chat("", "[]", "{}", "[]").ok());
}

TEST(ModelText, ReadsTheDemoModel) {
  auto text = LoadModelText(kRoot + "/deploy/demo_model/model");
  ASSERT_TRUE(text.ok()) << text.status();
  ASSERT_TRUE((*text)->chat_template.has_value());
  // Transformers drops the newline at the file's end.
  EXPECT_EQ((*text)->chat_template->source() + "\n",
            ReadFile(kRoot + "/deploy/demo_model/chat_template.jinja"));
  EXPECT_EQ((*text)->eos_ids, (std::vector<int32_t>{2041, 2043}));

  Json line = Json::parse(TokenizeLine(
      **text,
      R"({"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": true})"));
  EXPECT_EQ(line["text"], "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(line["ids"][0], *(*text)->tokenizer->IdOf("<|im_start|>"));
  line = Json::parse(TokenizeLine(**text, R"({"text": "hi<|im_end|>"})"));
  EXPECT_EQ(line["ids"].back(), 2043);
  for (const char* bad : {"", "5", "{}", "{\"text\": 5}", "{\"messages\": 5}",
                          R"({"messages": [], "add_generation_prompt": 1})"}) {
    EXPECT_TRUE(Json::parse(TokenizeLine(**text, bad)).contains("error")) << bad;
  }
}

TEST(ModelText, SaysWhatIsMissingOrWrong) {
  EXPECT_EQ(LoadModelText("/no/such/model").status().code(), absl::StatusCode::kNotFound);
  auto text = LoadModelText(kRoot + "/deploy/demo_model/model", "/no/such/template.jinja");
  EXPECT_THAT(std::string(text.status().message()), HasSubstr("/no/such/template.jinja"));
  auto without = LoadModelText(kRoot + "/tests/golden/tokenizers/qwen2");
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_FALSE((*without)->chat_template.has_value());
  EXPECT_TRUE((*without)->eos_ids.empty());
}

}  // namespace
}  // namespace plumbline
