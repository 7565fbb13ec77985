#include "coordinator/text/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/text/jinja/runtime.h"
#include "coordinator/text/unicode.h"
#include "nlohmann/json.hpp"

namespace plumbline::jinja {
namespace {

constexpr size_t kSmallDict = 8;  // up to here a search is as fast as an index

constexpr size_t kTextBytesCap = size_t{1} << 40;

std::shared_ptr<const Sequence> MakeSequence(List items, bool is_tuple) {
  auto sequence = std::make_shared<Sequence>();
  sequence->is_tuple = is_tuple;
  for (const Value& item : items) {
    sequence->depth = std::max(sequence->depth, item.depth() + 1);
    sequence->text_bytes = std::min(kTextBytesCap, sequence->text_bytes + item.text_bytes() + 2);
  }
  sequence->items = std::move(items);
  return sequence;
}

std::string Join(const List& items) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) absl::StrAppend(&out, i ? ", " : "", items[i].Repr());
  return out;
}

int Sign(double a, double b) { return a < b ? -1 : a > b ? 1 : 0; }

}  // namespace

Value Value::UndefinedBecause(std::string reason) {
  Value value;
  value.data_ = Undefined{std::make_shared<const std::string>(std::move(reason))};
  return value;
}

Value Value::MakeList(List items) {
  Value value;
  value.data_ = MakeSequence(std::move(items), false);
  return value;
}

Value Value::MakeTuple(List items) {
  Value value;
  value.data_ = MakeSequence(std::move(items), true);
  return value;
}

Value Value::MakeGenerator(List items) {
  Value value;
  value.data_ = std::make_shared<Generator>(Generator{MakeSequence(std::move(items), false)});
  return value;
}

Value Value::MakeDict(Entries entries) {
  auto dict = std::make_shared<Dict>();
  bool indexed = entries.size() > kSmallDict;
  for (auto& [key, item] : entries) {
    dict->depth = std::max({dict->depth, key.depth() + 1, item.depth() + 1});
    dict->text_bytes =
        std::min(kTextBytesCap, dict->text_bytes + key.text_bytes() + item.text_bytes() + 4);
    Value* present = nullptr;
    if (indexed && key.is_string()) {
      auto [it, inserted] = dict->index.try_emplace(key.string(), dict->entries.size());
      if (!inserted) present = &dict->entries[it->second].second;
    } else {
      for (auto& [other, value] : dict->entries) {
        if (Equal(other, key)) present = &value;
      }
    }
    if (present != nullptr) {
      *present = std::move(item);
    } else {
      dict->entries.emplace_back(std::move(key), std::move(item));
    }
  }
  Value value;
  value.data_ = std::shared_ptr<const Dict>(std::move(dict));
  return value;
}

bool Value::is_tuple() const {
  return is_sequence() && std::get<std::shared_ptr<const Sequence>>(data_)->is_tuple;
}

const List& Value::items() const { return std::get<std::shared_ptr<const Sequence>>(data_)->items; }

const Entries& Value::entries() const {
  return std::get<std::shared_ptr<const Dict>>(data_)->entries;
}

int64_t Value::integer() const {
  return is_bool() ? static_cast<int64_t>(std::get<bool>(data_)) : std::get<int64_t>(data_);
}

double Value::number() const {
  return is_float() ? std::get<double>(data_) : static_cast<double>(integer());
}

const std::string& Value::undefined_reason() const {
  static const std::string& unknown = *new std::string("value is undefined");
  const auto& reason = std::get<Undefined>(data_).reason;
  return reason ? *reason : unknown;
}

Generator* Value::generator() const {
  const auto* pointer = std::get_if<std::shared_ptr<Generator>>(&data_);
  return pointer == nullptr ? nullptr : pointer->get();
}

const Value* Value::FindKey(std::string_view key) const {
  const Dict& dict = *std::get<std::shared_ptr<const Dict>>(data_);
  if (!dict.index.empty()) {
    auto it = dict.index.find(key);
    return it == dict.index.end() ? nullptr : &dict.entries[it->second].second;
  }
  for (const auto& [other, value] : dict.entries) {
    if (other.is_string() && other.string() == key) return &value;
  }
  return nullptr;
}

const Value* Value::Find(const Value& key) const {
  if (key.is_string()) return FindKey(key.string());
  for (const auto& [other, value] : entries()) {
    if (Equal(other, key)) return &value;
  }
  return nullptr;
}

bool Value::Truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (is_string()) return !string().empty();
  if (is_sequence()) return !items().empty();
  if (is_dict()) return !entries().empty();
  return true;
}

std::string Value::Str() const {
  if (is_string()) return string();
  if (is_undefined()) return "";
  return Repr();
}

std::string Value::Repr() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "None";
  if (is_bool()) return integer() ? "True" : "False";
  if (is_int()) return absl::StrCat(integer());
  if (is_float()) return FormatFloat(number());
  if (is_markup()) return absl::StrCat("Markup(", QuotePython(string()), ")");
  if (is_string()) return QuotePython(string());
  if (is_tuple()) return absl::StrCat("(", Join(items()), items().size() == 1 ? ",)" : ")");
  if (is_sequence()) return absl::StrCat("[", Join(items()), "]");
  if (is_dict()) {
    std::string out = "{";
    for (const auto& [key, value] : entries()) {
      absl::StrAppend(&out, out.size() > 1 ? ", " : "", key.Repr(), ": ", value.Repr());
    }
    return out + "}";
  }
  return absl::StrCat("<", TypeName(), ">");
}

const char* Value::TypeName() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return is_markup() ? "Markup" : "str";
  if (is_sequence()) return is_tuple() ? "tuple" : "list";
  if (is_dict()) return "dict";
  if (generator() != nullptr) return "generator";
  if (name_space() != nullptr) return "Namespace";
  if (loop() != nullptr) return "LoopContext";
  return "function";
}

int Value::depth() const {
  if (is_sequence()) return std::get<std::shared_ptr<const Sequence>>(data_)->depth;
  if (is_dict()) return std::get<std::shared_ptr<const Dict>>(data_)->depth;
  if (generator() != nullptr) return generator()->items->depth;
  return 0;
}

size_t Value::text_bytes() const {
  if (is_string()) return string().size() + 2;
  if (is_sequence()) return std::get<std::shared_ptr<const Sequence>>(data_)->text_bytes;
  if (is_dict()) return std::get<std::shared_ptr<const Dict>>(data_)->text_bytes;
  if (generator() != nullptr) return generator()->items->text_bytes;
  return 8;
}

bool Equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.is_string() && b.is_string()) return a.string() == b.string();
  if (a.is_undefined() || a.is_none()) {
    return a.is_undefined() == b.is_undefined() && a.is_none() == b.is_none();
  }
  if (a.is_sequence() && b.is_sequence()) {
    return a.is_tuple() == b.is_tuple() && std::equal(a.items().begin(), a.items().end(),
                                                      b.items().begin(), b.items().end(), Equal);
  }
  if (a.is_dict() && b.is_dict()) {
    if (a.entries().size() != b.entries().size()) return false;
    for (const auto& [key, value] : a.entries()) {
      const Value* other = b.Find(key);
      if (other == nullptr || !Equal(value, *other)) return false;
    }
    return true;
  }
  if (a.generator() != nullptr) return a.generator() == b.generator();
  if (a.callable() != nullptr) return a.callable() == b.callable();
  if (a.name_space() != nullptr) return a.name_space() == b.name_space();
  if (a.loop() != nullptr) return a.loop() == b.loop();
  return false;
}

std::optional<int> Order(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    return a.integer() < b.integer() ? -1 : a.integer() > b.integer() ? 1 : 0;
  }
  if (a.is_number() && b.is_number()) return Sign(a.number(), b.number());
  // The order of UTF-8 bytes is that of code points.
  if (a.is_string() && b.is_string()) {
    int order = a.string().compare(b.string());
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  if (a.is_sequence() && b.is_sequence() && a.is_tuple() == b.is_tuple()) {
    size_t shorter = std::min(a.items().size(), b.items().size());
    for (size_t i = 0; i < shorter; ++i) {
      if (!Equal(a.items()[i], b.items()[i])) return Order(a.items()[i], b.items()[i]);
    }
    return Sign(a.items().size(), b.items().size());
  }
  return std::nullopt;
}

std::optional<Value> FromJson(const nlohmann::ordered_json& json, int max_depth) {
  if (max_depth < 0) return std::nullopt;
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return Value(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned: {
      uint64_t number = json.get<uint64_t>();
      if (number > INT64_MAX) return Value(static_cast<double>(number));
      return Value(static_cast<int64_t>(number));
    }
    case nlohmann::ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case nlohmann::ordered_json::value_t::string:
      return Value(json.get_ref<const std::string&>());
    case nlohmann::ordered_json::value_t::array: {
      List items;
      items.reserve(json.size());
      for (const auto& item : json) {
        std::optional<Value> value = FromJson(item, max_depth - 1);
        if (!value) return std::nullopt;
        items.push_back(*std::move(value));
      }
      return Value::MakeList(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      Entries entries;
      entries.reserve(json.size());
      for (const auto& [key, item] : json.items()) {
        std::optional<Value> value = FromJson(item, max_depth - 1);
        if (!value) return std::nullopt;
        entries.emplace_back(Value(key), *std::move(value));
      }
      return Value::MakeDict(std::move(entries));
    }
    default:
      return Value(None());
  }
}

std::string FormatFloat(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  char buffer[40];
  auto [end, error] =
      std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::scientific);
  std::string_view text(buffer, end - buffer);
  size_t e = text.find('e');
  int exponent = std::stoi(std::string(text.substr(e + 1)));
  std::string sign = text[0] == '-' ? "-" : "";
  std::string digits;
  for (char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  // Python writes an exponent below 1e-4 and from 1e16 on.
  if (exponent < -4 || exponent >= 16) {
    std::string fraction = digits.size() > 1 ? "." + digits.substr(1) : "";
    return absl::StrFormat("%s%c%se%c%02d", sign, digits[0], fraction, exponent < 0 ? '-' : '+',
                           std::abs(exponent));
  }
  if (exponent < 0) return sign + "0." + std::string(-exponent - 1, '0') + digits;
  size_t num_whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= num_whole)
    return sign + digits + std::string(num_whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, num_whole) + "." + digits.substr(num_whole);
}

std::string QuotePython(std::string_view text) {
  bool double_quotes = text.find('\'') != text.npos && text.find('"') == text.npos;
  char quote = double_quotes ? '"' : '\'';
  std::string out(1, quote);
  for (size_t pos = 0; pos < text.size();) {
    char32_t c = NextCodePoint(text, pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsPrintable(c)) {
      AppendUtf8(c, out);
    } else if (c < 0x100) {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned>(c));
    } else if (c < 0x10000) {
      absl::StrAppendFormat(&out, "\\u%04x", static_cast<unsigned>(c));
    } else {
      absl::StrAppendFormat(&out, "\\U%08x", static_cast<unsigned>(c));
    }
  }
  return out + quote;
}

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace plumbline::jinja
