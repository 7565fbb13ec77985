// Values of a Jinja template, with Python's meaning of truth, equality, order and text. Containers
// are immutable once made, so that copies share them; only generators can be used up.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "coordinator/text/string_map.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline::jinja {

class Value;
struct Callable;   // macros, methods, global functions: owned by the rendering
struct Namespace;  // likewise
struct LoopState;  // likewise

using List = std::vector<Value>;
using Entries = std::vector<std::pair<Value, Value>>;

struct None {
  bool operator==(const None&) const = default;
};

// Absent names and fields. Prints as nothing; most other uses are errors that say `reason`.
struct Undefined {
  std::shared_ptr<const std::string> reason;
};

struct String {
  std::shared_ptr<const std::string> text;
  bool is_markup = false;  // the result of |safe or |escape: `+` escapes what is joined to it
};

struct Sequence;
struct Dict;
struct Generator;

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None none) : data_(none) {}
  Value(bool b) : data_(b) {}
  Value(int64_t i) : data_(i) {}
  Value(int i) : data_(static_cast<int64_t>(i)) {}
  Value(size_t i) : data_(static_cast<int64_t>(i)) {}
  Value(double d) : data_(d) {}
  Value(std::string text, bool is_markup = false)
      : data_(String{std::make_shared<const std::string>(std::move(text)), is_markup}) {}
  Value(std::string_view text) : Value(std::string(text)) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(Callable* callable) : data_(callable) {}
  Value(Namespace* space) : data_(space) {}
  Value(LoopState* loop) : data_(loop) {}

  static Value UndefinedBecause(std::string reason);
  static Value MakeList(List items);
  static Value MakeTuple(List items);
  static Value MakeGenerator(List items);
  static Value MakeDict(Entries entries);  // the last of equal keys wins, at the first one's place

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_int() || is_float() || is_bool(); }
  bool is_integral() const { return is_int() || is_bool(); }
  bool is_string() const { return std::holds_alternative<String>(data_); }
  bool is_markup() const { return is_string() && std::get<String>(data_).is_markup; }
  bool is_sequence() const {
    return std::holds_alternative<std::shared_ptr<const Sequence>>(data_);
  }
  bool is_tuple() const;
  bool is_list() const { return is_sequence() && !is_tuple(); }
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(data_); }

  // REQUIRES: the value is of that kind.
  const std::string& string() const { return *std::get<String>(data_).text; }
  const List& items() const;
  const Entries& entries() const;
  int64_t integer() const;  // also of a bool
  double number() const;    // of any number
  const std::string& undefined_reason() const;

  Callable* callable() const { return Get<Callable>(); }  // null when it is none
  Namespace* name_space() const { return Get<Namespace>(); }
  LoopState* loop() const { return Get<LoopState>(); }
  Generator* generator() const;

  // Of a dict; null when there is no such key.
  const Value* Find(const Value& key) const;
  const Value* FindKey(std::string_view key) const;

  bool Truth() const;
  std::string Str() const;       // Python's str()
  std::string Repr() const;      // Python's repr()
  const char* TypeName() const;  // Python's name of the type: "str", "NoneType", ...
  int depth() const;             // nesting of containers; 0 for all else
  // About how long Str() would be; what a container shares counts every time.
  size_t text_bytes() const;

 private:
  template <typename T>
  T* Get() const {
    T* const* pointer = std::get_if<T*>(&data_);
    return pointer == nullptr ? nullptr : *pointer;
  }

  std::variant<Undefined, None, bool, int64_t, double, String, std::shared_ptr<const Sequence>,
               std::shared_ptr<const Dict>, std::shared_ptr<Generator>, Callable*, Namespace*,
               LoopState*>
      data_;
};

struct Sequence {
  List items;
  bool is_tuple = false;
  int depth = 1;
  size_t text_bytes = 0;
};

// What lazy filters return: true even without items, of unknown length, used up by one walk. Its
// items are made at once, so that, unlike in Python, a filter fails even if nobody walks over it.
struct Generator {
  std::shared_ptr<const Sequence> items;
  bool is_used_up = false;
};

struct Dict {
  Entries entries;
  StringMap<size_t> index;  // of string keys; only of dicts that are not small
  int depth = 1;
  size_t text_bytes = 0;
};

bool Equal(const Value& a, const Value& b);
// Less, equal, greater: -1, 0, 1; nothing for values that have no order in Python.
std::optional<int> Order(const Value& a, const Value& b);

// nullopt when `json` nests deeper than `max_depth`.
std::optional<Value> FromJson(const nlohmann::ordered_json& json, int max_depth);

std::string FormatFloat(double number);  // Python's repr
std::string QuotePython(std::string_view text);
std::string EscapeHtml(std::string_view text);

struct JsonStyle {
  int indent = -1;          // < 0: one line
  std::string indent_text;  // one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};
// Appends Python's json.dumps(value). Returns what is wrong with the value; empty when nothing is.
std::string AppendJson(const Value& value, const JsonStyle& style, std::string& out);

}  // namespace plumbline::jinja
