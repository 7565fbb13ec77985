// Jinja's tests: "value is name(arguments)".
#include <cmath>

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/python_text.h"
#include "coordinator/text/jinja/runtime.h"

namespace plumbline::jinja {
namespace {

using PlainTest = bool (*)(const Value&);

// Tests without arguments.
const StringMap<PlainTest>& PlainTests() {
  static const StringMap<PlainTest>& table = *new StringMap<PlainTest>{
      {"defined", [](const Value& v) { return !v.is_undefined(); }},
      {"undefined", [](const Value& v) { return v.is_undefined(); }},
      {"none", [](const Value& v) { return v.is_none(); }},
      {"string", [](const Value& v) { return v.is_string(); }},
      {"mapping", [](const Value& v) { return v.is_dict(); }},
      {"iterable",
       [](const Value& v) {
         return v.is_undefined() || v.is_string() || v.is_sequence() || v.is_dict() ||
                v.generator() || v.loop();
       }},
      {"sequence",
       [](const Value& v) {
         return v.is_undefined() || v.is_string() || v.is_sequence() || v.is_dict();
       }},
      {"number", [](const Value& v) { return v.is_number(); }},
      {"integer", [](const Value& v) { return v.is_int(); }},
      {"float", [](const Value& v) { return v.is_float(); }},
      {"boolean", [](const Value& v) { return v.is_bool(); }},
      {"true", [](const Value& v) { return v.is_bool() && v.Truth(); }},
      {"false", [](const Value& v) { return v.is_bool() && !v.Truth(); }},
      {"callable", [](const Value& v) { return v.callable() != nullptr; }},
      {"escaped", [](const Value& v) { return v.is_markup(); }},
      {"lower",
       [](const Value& v) {
         std::string s = v.Str();
         return Lower(s) == s && Upper(s) != s;
       }},
      {"upper", [](const Value& v) {
         std::string s = v.Str();
         return Upper(s) == s && Lower(s) != s;
       }}};
  return table;
}

// Tests that are comparisons with one argument.
const StringMap<const char*>& ComparingTests() {
  static const StringMap<const char*>& table = *new StringMap<const char*>{
      {"eq", "=="},         {"equalto", "=="}, {"==", "=="},      {"ne", "!="},
      {"!=", "!="},         {"lt", "<"},       {"lessthan", "<"}, {"<", "<"},
      {"le", "<="},         {"<=", "<="},      {"gt", ">"},       {">", ">"},
      {"greaterthan", ">"}, {"ge", ">="},      {">=", ">="},      {"in", "in"}};
  return table;
}

bool IsSame(const Value& a, const Value& b) {
  return std::string_view(a.TypeName()) == b.TypeName() && !a.is_sequence() && !a.is_dict() &&
         Equal(a, b);
}

}  // namespace

bool Runtime::ApplyTest(const std::string& name, const Value& value, const Arguments& arguments) {
  Step();
  ArgumentReader reader(*this, name.c_str(), arguments);
  if (auto it = PlainTests().find(name); it != PlainTests().end()) {
    reader.Done();
    return it->second(value);
  }
  if (auto it = ComparingTests().find(name); it != ComparingTests().end()) {
    Value other = reader.Required("other");
    reader.Done();
    return !failed() && Compare(it->second, value, other);
  }
  if (name == "odd" || name == "even" || name == "divisibleby") {
    Value divisor = name == "divisibleby" ? reader.Required("num") : Value(2);
    reader.Done();
    if (failed()) return false;
    Value remainder = Arithmetic("%", value, divisor);
    return remainder.is_number() && (remainder.number() == (name == "odd" ? 1 : 0));
  }
  if (name == "sameas") {
    Value other = reader.Required("other");
    return IsSame(value, other);
  }
  Fail(absl::StrCat("no test named '", name, "'"));
  return false;
}

}  // namespace plumbline::jinja
