// Filters of text and numbers.
#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/text/jinja/python_text.h"
#include "coordinator/text/jinja/runtime.h"
#include "coordinator/text/unicode.h"

namespace plumbline::jinja {
namespace {

template <auto kConvert>
Value ConvertFilter(Runtime& in, const Value& value, const Arguments&) {
  return in.NewString(kConvert(value.Str()), value.is_markup());
}

// Jinja's own: words begin after white space, hyphens and opening brackets.
std::string TitleWords(std::string_view text) {
  std::string out;
  std::string word;
  auto flush = [&] {
    size_t first = 0;
    if (!word.empty()) NextCodePoint(word, first);
    out += Upper(word.substr(0, first)) + Lower(word.substr(first));
    word.clear();
  };
  for (size_t pos = 0; pos < text.size();) {
    size_t begin = pos;
    char32_t c = NextCodePoint(text, pos);
    bool separates =
        IsWhiteSpace(c) || (c < 0x80 && std::string_view("-({[<").find(static_cast<char>(c)) !=
                                            std::string_view::npos);
    if (separates) flush();
    (separates ? out : word) += text.substr(begin, pos - begin);
  }
  flush();
  return out;
}

Value TrimFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "trim", arguments);
  const Value* characters = reader.Next("chars");
  reader.Done();
  std::optional<std::string> set;
  if (characters != nullptr && !characters->is_none()) set = characters->Str();
  return in.NewString(Strip(value.Str(), Side::kBoth, set), value.is_markup());
}

Value StringFilter(Runtime& in, const Value& value, const Arguments&) {
  return value.is_string() ? value : in.NewString(value.Str());
}

Value SafeFilter(Runtime& in, const Value& value, const Arguments&) {
  return in.NewString(value.Str(), true);
}

Value EscapeFilter(Runtime& in, const Value& value, const Arguments&) {
  return value.is_markup() ? value : in.NewString(EscapeHtml(value.Str()), true);
}

Value ReplaceFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "replace", arguments);
  std::string old_text = reader.Required("old").Str();
  std::string new_text = reader.Required("new").Str();
  int64_t count = reader.NextInteger("count", -1);
  reader.Done();
  std::string text = value.Str();
  in.StepSearch(text, old_text);
  if (in.failed()) return Value();
  in.Charge(CountText(text, old_text) * new_text.size());
  if (in.failed()) return Value();
  return in.NewString(ReplaceText(text, old_text, new_text, count));
}

Value IndentFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "indent", arguments);
  Value width = reader.Next("width", 4);
  bool first = reader.NextFlag("first", false);
  bool blank = reader.NextFlag("blank", false);
  reader.Done();
  if (width.is_integral()) in.Charge(static_cast<size_t>(std::max<int64_t>(width.integer(), 0)));
  if (in.failed()) return Value();
  std::string prefix = width.is_string() ? width.string()
                       : width.is_integral()
                           ? std::string(std::max<int64_t>(width.integer(), 0), ' ')
                           : "";
  std::vector<std::string> lines = SplitLines(value.Str() + "\n", false);
  in.Charge(lines.size() * prefix.size());
  if (in.failed()) return Value();
  std::string text;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) text += '\n';
    bool indented = i == 0 ? first : blank || !lines[i].empty();
    if (indented) text += prefix;
    text += lines[i];
  }
  return in.NewString(std::move(text), value.is_markup());
}

Value ToJsonFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "tojson", arguments);
  JsonStyle style;
  style.ensure_ascii = reader.NextFlag("ensure_ascii", false);
  if (const Value* indent = reader.Next("indent"); indent != nullptr && !indent->is_none()) {
    if (indent->is_integral() && indent->integer() <= 100) {
      style.indent_text.assign(std::max<int64_t>(indent->integer(), 0), ' ');
    } else if (indent->is_string() && indent->string().size() <= 100) {
      style.indent_text = indent->string();
    } else {
      return in.Fail("tojson: indent must be an integer up to 100 or a short string");
    }
    style.indent = 0;
    style.item_separator = ",";  // json.dumps leaves no blank before a line break
  }
  if (const Value* separators = reader.Next("separators");
      separators != nullptr && !separators->is_none()) {
    if (!separators->is_sequence() || separators->items().size() != 2)
      return in.Fail("tojson: separators must be a pair");
    style.item_separator = separators->items()[0].Str();
    style.key_separator = separators->items()[1].Str();
  }
  style.sort_keys = reader.NextFlag("sort_keys", false);
  reader.Done();
  in.Charge(value.text_bytes());
  if (in.failed()) return Value();
  std::string out;
  std::string error = AppendJson(value, style, out);
  if (!error.empty())
    return value.is_undefined() ? in.Fail(error + ": " + value.undefined_reason()) : in.Fail(error);
  return in.NewString(std::move(out));
}

// Python's int(text) and float(text), as far as decimal numbers go.
std::optional<double> ParseNumber(const std::string& text) {
  double number;
  std::string stripped = Strip(text, Side::kBoth, std::nullopt);
  if (stripped.empty() || !absl::SimpleAtod(stripped, &number)) return std::nullopt;
  return number;
}

Value IntFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "int", arguments);
  Value fallback = reader.Next("default", 0);
  int64_t base = reader.NextInteger("base", 10);
  reader.Done();
  if (value.is_integral()) return value.integer();
  std::optional<double> number;
  if (value.is_float()) number = value.number();
  if (value.is_string()) {
    std::string text = Strip(value.string(), Side::kBoth, std::nullopt);
    if (base != 10) {
      size_t used = 0;
      try {
        int64_t result = std::stoll(text, &used, static_cast<int>(base));
        return used == text.size() ? Value(result) : fallback;
      } catch (const std::exception&) {
        return fallback;
      }
    }
    int64_t integer;
    if (absl::SimpleAtoi(text, &integer)) return integer;
    number = ParseNumber(text);
  }
  if (!number || !(std::abs(*number) < 9e18)) return fallback;
  return static_cast<int64_t>(*number);
}

Value FloatFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "float", arguments);
  Value fallback = reader.Next("default", 0.0);
  reader.Done();
  if (value.is_number()) return value.number();
  if (value.is_string()) {
    if (std::optional<double> number = ParseNumber(value.string())) return *number;
  }
  return fallback;
}

Value AbsFilter(Runtime& in, const Value& value, const Arguments&) {
  if (value.is_integral())
    return value.integer() < 0 ? in.Arithmetic("*", value, -1) : Value(value.integer());
  if (value.is_float()) return std::abs(value.number());
  return in.Fail(absl::StrCat("bad operand type for abs(): '", value.TypeName(), "'"));
}

Value RoundFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "round", arguments);
  int64_t precision = reader.NextInteger("precision", 0);
  std::string method = reader.NextString("method", "common");
  reader.Done();
  if (!value.is_number())
    return in.Fail(absl::StrCat("type ", value.TypeName(), " cannot be rounded"));
  if (precision < -300 || precision > 300) return in.Fail("round: precision is out of range");
  double number = value.number();
  double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return std::ceil(number * scale) / scale;
  if (method == "floor") return std::floor(number * scale) / scale;
  if (method != "common") return in.Fail("method must be common, ceil or floor");
  if (value.is_integral() && precision >= 0) return value.integer();  // as Python's round(int, n)
  if (precision < 0) return std::nearbyint(number * scale) / scale;
  // Python rounds the exact decimal value, half to even; so does printf.
  double rounded = number;
  if (!absl::SimpleAtod(absl::StrFormat("%.*f", static_cast<int>(precision), number), &rounded))
    return number;
  return rounded;
}

Value FormatFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  if (!arguments.named.empty()) {
    Entries entries;
    for (const auto& [name, argument] : arguments.named)
      entries.emplace_back(Value(name), argument);
    return FormatPercent(in, value.Str(), in.NewDict(std::move(entries)));
  }
  return FormatPercent(in, value.Str(), in.NewTuple(arguments.positional));
}

Value WordCountFilter(Runtime&, const Value& value, const Arguments&) {
  return Split(value.Str(), std::nullopt, -1).size();
}

Value CenterFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "center", arguments);
  int64_t width = reader.NextInteger("width", 80);
  Arguments method_arguments{.positional = {Value(width)}, .named = {}};
  return in.Call(MethodOf(in, Value(value.Str()), "center"), method_arguments);
}

}  // namespace

FilterFunction FindTextFilter(const std::string& name) {
  static const StringMap<FilterFunction>& table =
      *new StringMap<FilterFunction>{{"upper", ConvertFilter<Upper>},
                                     {"lower", ConvertFilter<Lower>},
                                     {"title", ConvertFilter<TitleWords>},
                                     {"capitalize", ConvertFilter<Capitalize>},
                                     {"trim", TrimFilter},
                                     {"string", StringFilter},
                                     {"safe", SafeFilter},
                                     {"escape", EscapeFilter},
                                     {"e", EscapeFilter},
                                     {"replace", ReplaceFilter},
                                     {"indent", IndentFilter},
                                     {"tojson", ToJsonFilter},
                                     {"int", IntFilter},
                                     {"float", FloatFilter},
                                     {"abs", AbsFilter},
                                     {"round", RoundFilter},
                                     {"format", FormatFilter},
                                     {"wordcount", WordCountFilter},
                                     {"center", CenterFilter}};
  auto it = table.find(name);
  return it == table.end() ? nullptr : it->second;
}

}  // namespace plumbline::jinja
