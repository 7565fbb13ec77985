#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/text/jinja/value.h"
#include "coordinator/text/unicode.h"

namespace plumbline::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, std::string& out) : style_(style), out_(out) {}

  void Write(const Value& value) {
    if (value.is_none()) {
      out_ += "null";
    } else if (value.is_bool()) {
      out_ += value.Truth() ? "true" : "false";
    } else if (value.is_int()) {
      absl::StrAppend(&out_, value.integer());
    } else if (value.is_float()) {
      WriteFloat(value.number());
    } else if (value.is_string()) {
      WriteString(value.string());
    } else if (value.is_sequence()) {
      WriteItems(value.items());
    } else if (value.is_dict()) {
      WriteEntries(value.entries());
    } else if (error_.empty()) {
      error_ = absl::StrCat("Object of type ", value.TypeName(), " is not JSON serializable");
    }
  }

  const std::string& error() const { return error_; }

 private:
  void WriteFloat(double number) {
    if (std::isnan(number)) {
      out_ += "NaN";
    } else if (std::isinf(number)) {
      out_ += number < 0 ? "-Infinity" : "Infinity";
    } else {
      out_ += FormatFloat(number);
    }
  }

  void WriteString(const std::string& text) {
    out_ += '"';
    for (size_t pos = 0; pos < text.size();) {
      char32_t c = NextCodePoint(text, pos);
      const char* const kControls = "btn\vfr";  // \b is 8; 11 (\v) has no short form
      if (c == '"' || c == '\\') {
        out_ += '\\';
        out_ += static_cast<char>(c);
      } else if (c >= 8 && c <= 13 && c != 11) {
        out_ += '\\';
        out_ += kControls[c - 8];
      } else if (c < 0x20 || (style_.ensure_ascii && c > 0x7E && c < 0x10000)) {
        WriteUnit(c);
      } else if (style_.ensure_ascii && c >= 0x10000) {
        WriteUnit(0xD800 + ((c - 0x10000) >> 10));
        WriteUnit(0xDC00 + ((c - 0x10000) & 0x3FF));
      } else {
        AppendUtf8(c, out_);
      }
    }
    out_ += '"';
  }

  void WriteUnit(char32_t unit) {
    absl::StrAppendFormat(&out_, "\\u%04x", static_cast<unsigned>(unit));
  }

  void NewLine() {
    if (style_.indent < 0) return;
    out_ += '\n';
    for (int i = 0; i < level_; ++i) out_ += style_.indent_text;
  }

  void WriteItems(const List& items) {
    out_ += '[';
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      NewLine();
      Write(items[i]);
    }
    --level_;
    if (!items.empty()) NewLine();
    out_ += ']';
  }

  void WriteEntries(const Entries& entries) {
    std::vector<const std::pair<Value, Value>*> order;
    for (const auto& entry : entries) order.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(order.begin(), order.end(),
                       [](auto* a, auto* b) { return Order(a->first, b->first).value_or(0) < 0; });
    }
    out_ += '{';
    ++level_;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      NewLine();
      WriteKey(order[i]->first);
      out_ += style_.key_separator;
      Write(order[i]->second);
    }
    --level_;
    if (!order.empty()) NewLine();
    out_ += '}';
  }

  // json.dumps writes other plain keys as the strings they look like.
  void WriteKey(const Value& key) {
    if (key.is_string()) {
      WriteString(key.string());
    } else if (key.is_none() || key.is_number()) {
      out_ += '"';
      Write(key);
      out_ += '"';
    } else if (error_.empty()) {
      error_ = absl::StrCat("keys must be str, int, float, bool or None, not ", key.TypeName());
    }
  }

  const JsonStyle& style_;
  std::string& out_;
  std::string error_;
  int level_ = 0;
};

}  // namespace

std::string AppendJson(const Value& value, const JsonStyle& style, std::string& out) {
  JsonWriter writer(style, out);
  writer.Write(value);
  return writer.error();
}

}  // namespace plumbline::jinja
