// Functions that every template may call.
#include <array>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/runtime.h"

namespace plumbline::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // as in Jinja's sandbox

Value RaiseException(Runtime& in, const Arguments& arguments) {
  ArgumentReader reader(in, "raise_exception", arguments);
  return in.Fail(reader.Required("message").Str());
}

Value StrftimeNow(Runtime& in, const Arguments& arguments) {
  ArgumentReader reader(in, "strftime_now", arguments);
  std::string format = reader.Required("format").Str();
  reader.Done();
  std::time_t now = in.now();
  std::tm local = {};
  localtime_r(&now, &local);
  std::array<char, 1024> text;
  size_t length = std::strftime(text.data(), text.size(), format.c_str(), &local);
  return in.NewString(std::string(text.data(), length));
}

Value Range(Runtime& in, const Arguments& arguments) {
  ArgumentReader reader(in, "range", arguments);
  int64_t start = 0;
  int64_t stop = reader.NextInteger("start", 0);
  if (arguments.positional.size() > 1) {
    start = stop;
    stop = reader.NextInteger("stop", 0);
  }
  int64_t step = reader.NextInteger("step", 1);
  reader.Done();
  if (step == 0) return in.Fail("range() arg 3 must not be zero");
  List items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) {
      return in.FailExhausted(absl::StrCat("range() of more than ", kMaxRange, " items"));
    }
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return in.NewList(std::move(items));
}

// dict(**items) and namespace(**items) also take one mapping.
Entries NamedEntries(Runtime& in, const char* function, const Arguments& arguments) {
  Entries entries;
  if (arguments.positional.size() > 1)
    in.Fail(absl::StrCat(function, " expected at most 1 argument"));
  for (const Value& value : arguments.positional) {
    if (!value.is_dict()) {
      in.Fail(absl::StrCat(function, " expects a mapping, not ", value.TypeName()));
      return entries;
    }
    entries = value.entries();
  }
  for (const auto& [name, value] : arguments.named) entries.emplace_back(Value(name), value);
  return entries;
}

Value DictFunction(Runtime& in, const Arguments& arguments) {
  return in.NewDict(NamedEntries(in, "dict", arguments));
}

Value NamespaceFunction(Runtime& in, const Arguments& arguments) {
  Namespace* space = in.NewNamespace();
  for (auto& [name, value] : NamedEntries(in, "namespace", arguments)) {
    if (Value* present = space->Find(name.Str())) {
      *present = value;
    } else {
      space->attributes.emplace_back(name.Str(), value);
    }
  }
  return Value(space);
}

}  // namespace

Value GlobalFunction(Runtime& runtime, const std::string& name) {
  using Function = Value (*)(Runtime&, const Arguments&);
  static const StringMap<Function>& functions =
      *new StringMap<Function>{{"raise_exception", RaiseException},
                               {"strftime_now", StrftimeNow},
                               {"range", Range},
                               {"dict", DictFunction},
                               {"namespace", NamespaceFunction}};
  auto it = functions.find(name);
  return it == functions.end() ? Value() : runtime.NewCallable(name, it->second);
}

}  // namespace plumbline::jinja
