// Methods of strings, lists and mappings. Those that change their object are refused, as the
// sandbox of `transformers` does.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/python_text.h"
#include "coordinator/text/jinja/runtime.h"
#include "coordinator/text/unicode.h"

namespace plumbline::jinja {
namespace {

using Method = Value (*)(Runtime&, const Value&, const Arguments&);
using MethodTable = StringMap<Method>;

std::optional<std::string> OptionalString(ArgumentReader& reader, Runtime& runtime,
                                          std::string_view name) {
  const Value* value = reader.Next(name);
  if (value == nullptr || value->is_none()) return std::nullopt;
  if (!value->is_string())
    runtime.Fail(absl::StrCat("expected a string or None, not ", value->TypeName()));
  return value->is_string() ? std::optional<std::string>(value->string()) : std::nullopt;
}

Value StringsToList(Runtime& runtime, const std::vector<std::string>& strings) {
  List items;
  items.reserve(strings.size());
  for (const std::string& text : strings) items.push_back(runtime.NewString(text));
  return runtime.NewList(std::move(items));
}

template <Side kSide>
Value StripMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "strip", arguments);
  std::optional<std::string> characters = OptionalString(reader, in, "chars");
  reader.Done();
  return in.NewString(Strip(self.string(), kSide, characters), self.is_markup());
}

template <auto kSplit>
Value SplitMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "split", arguments);
  std::optional<std::string> separator = OptionalString(reader, in, "sep");
  int64_t max_split = reader.NextInteger("maxsplit", -1);
  reader.Done();
  if (separator && separator->empty()) return in.Fail("empty separator");
  in.StepSearch(self.string(), separator.value_or(" "));
  if (in.failed()) return Value();
  return StringsToList(in, kSplit(self.string(), separator, max_split));
}

template <auto kConvert>
Value ConvertMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader(in, "str method", arguments).Done();
  return in.NewString(kConvert(self.string()), self.is_markup());
}

template <bool kAtEnd>
Value AffixMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, kAtEnd ? "endswith" : "startswith", arguments);
  Value affix = reader.Required("prefix");
  reader.Done();
  List candidates = affix.is_tuple() ? affix.items() : List{affix};
  for (const Value& candidate : candidates) {
    if (!candidate.is_string()) {
      return in.Fail(absl::StrCat(kAtEnd ? "endswith" : "startswith",
                                  " first arg must be str or a tuple of str, not ",
                                  candidate.TypeName()));
    }
    std::string_view text = self.string();
    if (kAtEnd ? text.ends_with(candidate.string()) : text.starts_with(candidate.string()))
      return true;
  }
  return false;
}

template <bool kAtEnd>
Value RemoveAffixMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "removeprefix", arguments);
  std::string affix = reader.NextString("prefix", "");
  reader.Done();
  std::string_view text = self.string();
  if (kAtEnd && text.ends_with(affix)) text.remove_suffix(affix.size());
  if (!kAtEnd && text.starts_with(affix)) text.remove_prefix(affix.size());
  return in.NewString(std::string(text));
}

Value ReplaceMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "replace", arguments);
  std::string old_text = reader.NextString("old", "");
  std::string new_text = reader.NextString("new", "");
  int64_t count = reader.NextInteger("count", -1);
  reader.Done();
  in.StepSearch(self.string(), old_text);
  if (in.failed()) return Value();
  in.Charge(CountText(self.string(), old_text) * new_text.size());
  if (in.failed()) return Value();
  return in.NewString(ReplaceText(self.string(), old_text, new_text, count), self.is_markup());
}

Value JoinMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "join", arguments);
  List items = in.Iterate(reader.Required("iterable"));
  reader.Done();
  std::string text;
  for (size_t i = 0; i < items.size() && !in.failed(); ++i) {
    if (!items[i].is_string()) {
      return in.Fail(absl::StrCat("sequence item ", i, ": expected str instance, ",
                                  items[i].TypeName(), " found"));
    }
    if (i > 0) text += self.string();
    text += items[i].string();
    in.Charge(self.string().size() + items[i].string().size());
  }
  return in.NewString(std::move(text));
}

Value SplitLinesMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "splitlines", arguments);
  bool keep_ends = reader.NextFlag("keepends", false);
  reader.Done();
  return StringsToList(in, SplitLines(self.string(), keep_ends));
}

template <bool kFromRight, bool kMustExist>
Value FindMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "find", arguments);
  std::string part = reader.NextString("sub", "");
  reader.Done();
  const std::string& text = self.string();
  in.StepSearch(text, part);
  if (in.failed()) return Value();
  size_t at = kFromRight ? text.rfind(part) : text.find(part);
  if (at == std::string::npos) return kMustExist ? in.Fail("substring not found") : Value(-1);
  return CountCodePoints(std::string_view(text).substr(0, at));
}

Value CountMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "count", arguments);
  std::string part = reader.NextString("sub", "");
  reader.Done();
  in.StepSearch(self.string(), part);
  return in.failed() ? Value() : Value(CountText(self.string(), part));
}

template <bool kFromRight>
Value PartitionMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "partition", arguments);
  std::string separator = reader.NextString("sep", "");
  reader.Done();
  if (separator.empty()) return in.Fail("empty separator");
  const std::string& text = self.string();
  in.StepSearch(text, separator);
  if (in.failed()) return Value();
  size_t at = kFromRight ? text.rfind(separator) : text.find(separator);
  if (at == std::string::npos) {
    return in.NewTuple(kFromRight ? List{"", "", self} : List{self, "", ""});
  }
  return in.NewTuple({in.NewString(text.substr(0, at)), Value(separator),
                      in.NewString(text.substr(at + separator.size()))});
}

// All characters are `kind`, and there is one.
template <bool (*kKind)(char32_t)>
Value IsAllMethod(Runtime&, const Value& self, const Arguments&) {
  const std::string& text = self.string();
  for (size_t pos = 0; pos < text.size();) {
    if (!kKind(NextCodePoint(text, pos))) return false;
  }
  return !text.empty();
}

bool IsLetter(char32_t c) { return IsWord(c) && !IsNumeric(c) && c != '_' && c > 0x20; }
bool IsLetterOrNumber(char32_t c) { return IsLetter(c) || IsNumeric(c); }

template <auto kConvert>
Value IsCaseMethod(Runtime&, const Value& self, const Arguments&) {
  const std::string& text = self.string();
  return kConvert(text) == text && (Upper(text) != text || Lower(text) != text);
}

template <Side kPadSide>
Value PadMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "just", arguments);
  int64_t width = reader.NextInteger("width", 0);
  std::string fill = reader.NextString("fillchar", " ");
  reader.Done();
  if (CountCodePoints(fill) != 1)
    return in.Fail("the fill character must be exactly one character long");
  const int64_t length = static_cast<int64_t>(CountCodePoints(self.string()));
  if (width <= length) return self;
  const int64_t missing = width - length;
  in.Charge(static_cast<size_t>(missing) * fill.size());
  if (in.failed()) return Value();
  // str.center puts the odd space left when the width is odd.
  int64_t left = kPadSide == Side::kLeft    ? missing
                 : kPadSide == Side::kRight ? 0
                                            : missing / 2 + (missing & width & 1);
  std::string text;
  for (int64_t i = 0; i < left; ++i) text += fill;
  text += self.string();
  for (int64_t i = left; i < missing; ++i) text += fill;
  return in.NewString(std::move(text));
}

Value ZeroFillMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "zfill", arguments);
  const int64_t width = reader.NextInteger("width", 0);
  reader.Done();
  const int64_t length = static_cast<int64_t>(CountCodePoints(self.string()));
  if (width <= length) return self;
  const int64_t missing = width - length;
  in.Charge(static_cast<size_t>(missing));
  if (in.failed()) return Value();
  std::string text = self.string();
  bool has_sign = text.starts_with('-') || text.starts_with('+');
  text.insert(has_sign ? 1 : 0, missing, '0');
  return in.NewString(std::move(text));
}

// str.format with {}, {0} and {name}; no conversions or widths.
Value FormatMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  const std::string& format = self.string();
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size() && !in.failed(); ++i) {
    char c = format[i];
    bool doubled = i + 1 < format.size() && format[i + 1] == c;
    if ((c == '{' || c == '}') && doubled) {
      out += c;
      ++i;
    } else if (c == '{') {
      size_t close = format.find('}', i);
      if (close == std::string::npos) return in.Fail("expected '}' in format string");
      std::string field = format.substr(i + 1, close - i - 1);
      bool is_index = !field.empty() && std::all_of(field.begin(), field.end(),
                                                    [](char d) { return d >= '0' && d <= '9'; });
      const Value* value = field.empty() ? arguments.Get(next++, "")
                           : is_index
                               ? arguments.Get(field.size() > 6 ? SIZE_MAX : std::stoul(field), "")
                               : arguments.Get(SIZE_MAX, field);
      if (value == nullptr) return in.Fail(absl::StrCat("format: no argument for {", field, "}"));
      in.Charge(value->text_bytes());
      if (!in.failed()) out += value->Str();
      i = close;
    } else if (c == '}') {
      return in.Fail("single '}' encountered in format string");
    } else {
      out += c;
    }
  }
  return in.NewString(std::move(out));
}

const MethodTable& StringMethods() {
  static const MethodTable& table = *new MethodTable{{"strip", StripMethod<Side::kBoth>},
                                                     {"lstrip", StripMethod<Side::kLeft>},
                                                     {"rstrip", StripMethod<Side::kRight>},
                                                     {"split", SplitMethod<Split>},
                                                     {"rsplit", SplitMethod<SplitFromRight>},
                                                     {"splitlines", SplitLinesMethod},
                                                     {"startswith", AffixMethod<false>},
                                                     {"endswith", AffixMethod<true>},
                                                     {"removeprefix", RemoveAffixMethod<false>},
                                                     {"removesuffix", RemoveAffixMethod<true>},
                                                     {"replace", ReplaceMethod},
                                                     {"join", JoinMethod},
                                                     {"upper", ConvertMethod<Upper>},
                                                     {"lower", ConvertMethod<Lower>},
                                                     {"casefold", ConvertMethod<Lower>},
                                                     {"title", ConvertMethod<Title>},
                                                     {"capitalize", ConvertMethod<Capitalize>},
                                                     {"find", FindMethod<false, false>},
                                                     {"rfind", FindMethod<true, false>},
                                                     {"index", FindMethod<false, true>},
                                                     {"rindex", FindMethod<true, true>},
                                                     {"count", CountMethod},
                                                     {"partition", PartitionMethod<false>},
                                                     {"rpartition", PartitionMethod<true>},
                                                     {"isspace", IsAllMethod<IsWhiteSpace>},
                                                     {"isdigit", IsAllMethod<IsNumeric>},
                                                     {"isnumeric", IsAllMethod<IsNumeric>},
                                                     {"isdecimal", IsAllMethod<IsNumeric>},
                                                     {"isalpha", IsAllMethod<IsLetter>},
                                                     {"isalnum", IsAllMethod<IsLetterOrNumber>},
                                                     {"isupper", IsCaseMethod<Upper>},
                                                     {"islower", IsCaseMethod<Lower>},
                                                     {"ljust", PadMethod<Side::kRight>},
                                                     {"rjust", PadMethod<Side::kLeft>},
                                                     {"center", PadMethod<Side::kBoth>},
                                                     {"zfill", ZeroFillMethod},
                                                     {"format", FormatMethod}};
  return table;
}

Value KeysMethod(Runtime& in, const Value& self, const Arguments&) {
  return in.NewList(in.Iterate(self));
}

Value ValuesMethod(Runtime& in, const Value& self, const Arguments&) {
  List values;
  for (const auto& entry : self.entries()) values.push_back(entry.second);
  return in.NewList(std::move(values));
}

Value ItemsMethod(Runtime& in, const Value& self, const Arguments&) {
  List items;
  for (const auto& [key, value] : self.entries()) items.push_back(in.NewTuple({key, value}));
  return in.NewList(std::move(items));
}

Value GetMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "get", arguments);
  Value key = reader.Required("key");
  Value fallback = reader.Next("default", None());
  reader.Done();
  const Value* value = self.Find(key);
  return value == nullptr ? fallback : *value;
}

Value CopyMethod(Runtime&, const Value& self, const Arguments&) { return self; }

Value Unsafe(Runtime& in, const Value& self, const Arguments&) {
  return in.Fail(absl::StrCat("a method that changes a ", self.TypeName(), " is not safe to call"));
}

const MethodTable& DictMethods() {
  static const MethodTable& table = *new MethodTable{
      {"keys", KeysMethod},   {"values", ValuesMethod}, {"items", ItemsMethod}, {"get", GetMethod},
      {"copy", CopyMethod},   {"pop", Unsafe},          {"popitem", Unsafe},    {"update", Unsafe},
      {"setdefault", Unsafe}, {"clear", Unsafe},        {"fromkeys", Unsafe}};
  return table;
}

Value ListCountMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "count", arguments);
  Value item = reader.Required("value");
  reader.Done();
  const List& items = self.items();
  return static_cast<size_t>(
      std::count_if(items.begin(), items.end(), [&](const Value& v) { return Equal(v, item); }));
}

Value ListIndexMethod(Runtime& in, const Value& self, const Arguments& arguments) {
  ArgumentReader reader(in, "index", arguments);
  Value item = reader.Required("value");
  reader.Done();
  for (size_t i = 0; i < self.items().size(); ++i) {
    if (Equal(self.items()[i], item)) return i;
  }
  return in.Fail(absl::StrCat(item.Repr(), " is not in list"));
}

const MethodTable& ListMethods() {
  static const MethodTable& table = *new MethodTable{{"count", ListCountMethod},
                                                     {"index", ListIndexMethod},
                                                     {"copy", CopyMethod},
                                                     {"append", Unsafe},
                                                     {"extend", Unsafe},
                                                     {"insert", Unsafe},
                                                     {"pop", Unsafe},
                                                     {"remove", Unsafe},
                                                     {"clear", Unsafe},
                                                     {"sort", Unsafe},
                                                     {"reverse", Unsafe}};
  return table;
}

}  // namespace

Value MethodOf(Runtime& runtime, const Value& object, const std::string& name) {
  const MethodTable* table = object.is_string()     ? &StringMethods()
                             : object.is_dict()     ? &DictMethods()
                             : object.is_sequence() ? &ListMethods()
                                                    : nullptr;
  if (table == nullptr) return Value();
  auto it = table->find(name);
  if (it == table->end()) return Value();
  return runtime.NewCallable(
      name, [method = it->second, object](Runtime& in, const Arguments& arguments) {
        return method(in, object, arguments);
      });
}

}  // namespace plumbline::jinja
