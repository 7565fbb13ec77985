// Arithmetic, comparison and concatenation of values, as Python does them.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/runtime.h"

namespace plumbline::jinja {
namespace {

constexpr size_t kMaxRepeatedBytes = 64 << 20;

Value Unsupported(Runtime& runtime, const std::string& op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) return runtime.Fail(value->undefined_reason());
  }
  if (op == "+" && a.is_string()) {
    return runtime.Fail(
        absl::StrCat("can only concatenate str (not \"", b.TypeName(), "\") to str"));
  }
  return runtime.Fail(absl::StrCat("unsupported operand type(s) for ", op, ": '", a.TypeName(),
                                   "' and '", b.TypeName(), "'"));
}

// Floor division and modulo round towards minus infinity.
Value IntegerArithmetic(Runtime& runtime, const std::string& op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (op == "**") {
    if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
    result = 1;
    for (; b > 0 && !overflow && result != 0 && !(a == 1); --b) {
      if (a == -1) {
        result = b % 2 ? -1 : 1;
        break;
      }
      overflow = __builtin_mul_overflow(result, a, &result);
    }
  } else {
    if (b == 0) return runtime.Fail("division by zero");
    if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
    if (b == -1) {
      overflow = __builtin_sub_overflow(int64_t{0}, a, &result);
      if (op == "%") return 0;
    } else {
      int64_t quotient = a / b;
      int64_t remainder = a % b;
      if (remainder != 0 && (remainder < 0) != (b < 0)) {
        --quotient;
        remainder += b;
      }
      result = op == "//" ? quotient : remainder;
    }
  }
  if (overflow) return runtime.Fail("integer is out of range");
  return result;
}

Value FloatArithmetic(Runtime& runtime, const std::string& op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) return runtime.Fail("float division by zero");
  if (op == "/") return a / b;
  if (op == "//") return std::floor(a / b);
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  return remainder;
}

Value Repeat(Runtime& runtime, const Value& value, int64_t count) {
  if (count < 0) count = 0;
  size_t unit = value.is_string() ? value.string().size() : value.items().size() * sizeof(Value);
  if (unit == 0) count = 0;
  if (unit != 0 && static_cast<size_t>(count) > kMaxRepeatedBytes / unit) {
    return runtime.FailExhausted("a repeated value is too long");
  }
  if (value.is_string()) {
    std::string text;
    text.reserve(unit * count);
    for (int64_t i = 0; i < count; ++i) text += value.string();
    return runtime.NewString(std::move(text), value.is_markup());
  }
  List items;
  for (int64_t i = 0; i < count; ++i)
    items.insert(items.end(), value.items().begin(), value.items().end());
  return value.is_tuple() ? runtime.NewTuple(std::move(items)) : runtime.NewList(std::move(items));
}

}  // namespace

Value Runtime::Arithmetic(const std::string& op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral())
    return IntegerArithmetic(*this, op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return FloatArithmetic(*this, op, a.number(), b.number());
  if (op == "+") {
    if (a.is_string() && b.is_string()) {
      if (!a.is_markup() && !b.is_markup()) return NewString(a.string() + b.string());
      return NewString((a.is_markup() ? a.string() : EscapeHtml(a.string())) +
                           (b.is_markup() ? b.string() : EscapeHtml(b.string())),
                       true);
    }
    if (a.is_sequence() && b.is_sequence() && a.is_tuple() == b.is_tuple()) {
      List items = a.items();
      items.insert(items.end(), b.items().begin(), b.items().end());
      return a.is_tuple() ? NewTuple(std::move(items)) : NewList(std::move(items));
    }
  } else if (op == "*") {
    if ((a.is_string() || a.is_sequence()) && b.is_integral()) return Repeat(*this, a, b.integer());
    if ((b.is_string() || b.is_sequence()) && a.is_integral()) return Repeat(*this, b, a.integer());
  } else if (op == "%" && a.is_string() && !b.is_undefined()) {
    return FormatPercent(*this, a.string(), b);
  }
  return Unsupported(*this, op, a, b);
}

bool Runtime::Compare(const std::string& op, const Value& a, const Value& b) {
  Step(std::min(a.text_bytes(), b.text_bytes()) / 64);
  if (failed()) return false;
  if (op == "==") return Equal(a, b);
  if (op == "!=") return !Equal(a, b);
  if (op == "in") return Contains(b, a);
  if (op == "not in") return !Contains(b, a);
  std::optional<int> order = Order(a, b);
  if (!order) {
    for (const Value* value : {&a, &b}) {
      if (value->is_undefined()) {
        Fail(value->undefined_reason());
        return false;
      }
    }
    Fail(absl::StrCat("'", op, "' not supported between instances of '", a.TypeName(), "' and '",
                      b.TypeName(), "'"));
    return false;
  }
  if (op == "<") return *order < 0;
  if (op == "<=") return *order <= 0;
  if (op == ">") return *order > 0;
  return *order >= 0;
}

bool Runtime::Contains(const Value& container, const Value& item) {
  if (container.is_undefined()) return false;
  if (container.is_string()) {
    if (item.is_string()) StepSearch(container.string(), item.string());
    if (failed()) return false;
    if (item.is_string()) return container.string().find(item.string()) != std::string::npos;
    if (item.is_undefined()) {
      Fail(item.undefined_reason());
    } else {
      Fail(absl::StrCat("'in <string>' requires string as left operand, not ", item.TypeName()));
    }
    return false;
  }
  if (container.is_dict()) return container.Find(item) != nullptr;
  if (container.is_sequence()) {
    Step(container.text_bytes() / 64);
    return !failed() && std::any_of(container.items().begin(), container.items().end(),
                                    [&](const Value& member) { return Equal(member, item); });
  }
  if (container.generator() != nullptr) {
    List members = Iterate(container);
    Step(members.size() / 16);
    return std::any_of(members.begin(), members.end(),
                       [&](const Value& member) { return Equal(member, item); });
  }
  Fail(absl::StrCat("argument of type '", container.TypeName(), "' is not iterable"));
  return false;
}

Value Runtime::Concat(const std::vector<Value>& parts) {
  std::string text;
  for (const Value& part : parts) {
    Charge(part.text_bytes());
    if (failed()) return Value();
    text += part.Str();
  }
  return NewString(std::move(text));
}

}  // namespace plumbline::jinja
