// Python's "format % values": %s %r %d %i %x %f %e %g %c %% with flags, width, precision and names.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/text/jinja/runtime.h"
#include "coordinator/text/unicode.h"

namespace plumbline::jinja {
namespace {

constexpr int kMaxWidth = 1000;

struct Field {
  std::string name;
  std::string flags;
  int width = 0;
  int precision = -1;
  char conversion = '\0';
};

// `pos` is behind "%".
bool ReadField(const std::string& format, size_t& pos, Field& field) {
  auto at = [&](size_t i) { return i < format.size() ? format[i] : '\0'; };
  if (at(pos) == '(') {
    size_t close = format.find(')', pos);
    if (close == std::string::npos) return false;
    field.name = format.substr(pos + 1, close - pos - 1);
    pos = close + 1;
  }
  while (std::string_view("-+ #0").find(at(pos)) != std::string_view::npos && at(pos) != '\0')
    field.flags += format[pos++];
  auto read_number = [&](int& number) {
    while (at(pos) >= '0' && at(pos) <= '9' && number <= kMaxWidth)
      number = number * 10 + (format[pos++] - '0');
    return number <= kMaxWidth;
  };
  if (!read_number(field.width)) return false;
  if (at(pos) == '.') {
    ++pos;
    field.precision = 0;
    if (!read_number(field.precision)) return false;
  }
  field.conversion = at(pos++);
  return field.conversion != '\0';
}

std::string FormatNumber(Runtime& in, const Field& field, const Value& value) {
  if (!value.is_number()) {
    in.Fail(absl::StrCat("%", std::string(1, field.conversion),
                         " format: a number is required, not ", value.TypeName()));
    return "";
  }
  const bool is_integer =
      std::string_view("diuxXo").find(field.conversion) != std::string_view::npos;
  if (is_integer && value.is_float() && !(std::abs(value.number()) < 9e18)) {
    in.Fail(absl::StrCat("%", std::string(1, field.conversion), " format: number is out of range"));
    return "";
  }
  const int64_t integer = !is_integer        ? 0
                          : value.is_float() ? static_cast<int64_t>(value.number())
                                             : value.integer();
  std::string flags = field.flags;
  int precision = field.precision;
  switch (field.conversion) {
    case 'd':
    case 'i':
    case 'u': {
      std::string digits = absl::StrCat(integer);
      if (integer >= 0 && flags.find('+') != std::string::npos) digits.insert(0, "+");
      return digits;
    }
    case 'x':
      return absl::StrFormat("%x", integer);
    case 'X':
      return absl::StrFormat("%X", integer);
    case 'o':
      return absl::StrFormat("%o", integer);
    case 'e':
      return absl::StrFormat("%.*e", precision < 0 ? 6 : precision, value.number());
    case 'g':
      return absl::StrFormat("%.*g", precision < 0 ? 6 : precision, value.number());
    default:
      return absl::StrFormat("%.*f", precision < 0 ? 6 : precision, value.number());
  }
}

std::string Pad(std::string text, const Field& field, bool is_number) {
  size_t length = CountCodePoints(text);
  if (length >= static_cast<size_t>(field.width)) return text;
  size_t missing = field.width - length;
  if (field.flags.find('-') != std::string::npos) return text + std::string(missing, ' ');
  if (is_number && field.flags.find('0') != std::string::npos) {
    size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
    return text.insert(sign, missing, '0');
  }
  return std::string(missing, ' ') + text;
}

}  // namespace

Value FormatPercent(Runtime& in, const std::string& format, const Value& values) {
  std::string out;
  size_t next = 0;
  size_t num_values = values.is_tuple() ? values.items().size() : 1;
  for (size_t pos = 0; pos < format.size() && !in.failed();) {
    if (format[pos] != '%') {
      out += format[pos++];
      continue;
    }
    ++pos;
    Field field;
    if (!ReadField(format, pos, field)) return in.Fail("incomplete format");
    if (field.conversion == '%') {
      out += '%';
      continue;
    }
    Value value;
    if (!field.name.empty()) {
      if (!values.is_dict()) return in.Fail("format requires a mapping");
      const Value* found = values.FindKey(field.name);
      if (found == nullptr)
        return in.Fail(absl::StrCat("format: no value named '", field.name, "'"));
      value = *found;
    } else {
      if (next >= num_values) return in.Fail("not enough arguments for format string");
      value = values.is_tuple() ? values.items()[next] : values;
      ++next;
    }
    bool is_text = field.conversion == 's' || field.conversion == 'r';
    if (!is_text &&
        std::string_view("diuxXoeEfFgG").find(field.conversion) == std::string_view::npos) {
      return in.Fail(
          absl::StrCat("unsupported format character '", std::string(1, field.conversion), "'"));
    }
    in.Charge(value.text_bytes());
    if (in.failed()) return Value();
    std::string text = !is_text                  ? FormatNumber(in, field, value)
                       : field.conversion == 's' ? value.Str()
                                                 : value.Repr();
    out += Pad(std::move(text), field, !is_text);
  }
  if (next < num_values && !values.is_dict() && (values.is_tuple() || next == 0)) {
    return in.Fail("not all arguments converted during string formatting");
  }
  return in.NewString(std::move(out));
}

}  // namespace plumbline::jinja
