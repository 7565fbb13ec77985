// Attributes, items and slices of values.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/runtime.h"
#include "coordinator/text/unicode.h"

namespace plumbline::jinja {
namespace {

const char* ObjectName(const Value& value) {
  if (value.is_none()) return "None";
  return value.TypeName();
}

Value LoopAttribute(Runtime& runtime, LoopState* loop, const std::string& name) {
  const List& items = *loop->items;
  size_t index = loop->index;
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return items.size() - index;
  if (name == "revindex0") return items.size() - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 == items.size();
  if (name == "length") return items.size();
  if (name == "depth") return 1;  // only recursive loops would go deeper
  if (name == "depth0") return 0;
  if (name == "previtem") {
    return index > 0 ? items[index - 1] : Value::UndefinedBecause("there is no previous item");
  }
  if (name == "nextitem") {
    return index + 1 < items.size() ? items[index + 1]
                                    : Value::UndefinedBecause("there is no next item");
  }
  if (name == "cycle") {
    return runtime.NewCallable("cycle", [loop](Runtime& in, const Arguments& arguments) {
      if (arguments.positional.empty()) return in.Fail("no items for cycling given");
      return arguments.positional[loop->index % arguments.positional.size()];
    });
  }
  if (name == "changed") {
    return runtime.NewCallable("changed", [loop](Runtime&, const Arguments& arguments) -> Value {
      const std::vector<Value>& now = arguments.positional;
      bool same =
          loop->has_changed && std::equal(now.begin(), now.end(), loop->last_changed.begin(),
                                          loop->last_changed.end(), Equal);
      loop->has_changed = true;
      loop->last_changed = now;
      return !same;
    });
  }
  return Value();
}

// Index of Python's slice(start, stop, step) over `length` items, in order.
std::vector<size_t> SliceIndexes(int64_t length, const Value& start, const Value& stop,
                                 int64_t step) {
  auto bound = [&](const Value& value, int64_t fallback) {
    if (!value.is_integral()) return fallback;
    int64_t index = value.integer();
    if (index < 0) index = std::max<int64_t>(index, -length - 1) + length;
    return step > 0 ? std::clamp<int64_t>(index, 0, length)
                    : std::clamp<int64_t>(index, -1, length - 1);
  };
  int64_t begin = bound(start, step > 0 ? 0 : length - 1);
  int64_t end = bound(stop, step > 0 ? length : -1);
  std::vector<size_t> indexes;
  step = std::clamp<int64_t>(step, -length - 1, length + 1);
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) indexes.push_back(i);
  return indexes;
}

}  // namespace

Value Runtime::GetAttribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) return Fail(object.undefined_reason());
  if (name.starts_with("__")) {
    return Value::UndefinedBecause(absl::StrCat("access to attribute '", name, "' of '",
                                                ObjectName(object), "' object is unsafe"));
  }
  if (object.name_space() != nullptr) {
    if (const Value* value = object.name_space()->Find(name)) return *value;
  } else if (object.loop() != nullptr) {
    Value value = LoopAttribute(*this, object.loop(), name);
    bool is_item = name == "previtem" || name == "nextitem";
    if (!value.is_undefined() || is_item) return value;
  } else if (object.callable() != nullptr) {
    if (name == "name") return Value(object.callable()->name);
  } else {
    Value method = MethodOf(*this, object, name);
    if (!method.is_undefined()) return method;
  }
  if (object.is_dict()) {
    if (const Value* value = object.FindKey(name)) return *value;
  }
  return Value::UndefinedBecause(absl::StrCat("'", ObjectName(object),
                                              object.is_none() ? "" : " object",
                                              "' has no attribute '", name, "'"));
}

Value Runtime::GetItem(const Value& object, const Value& key) {
  if (object.is_undefined()) return Fail(object.undefined_reason());
  if (object.is_dict()) {
    if (const Value* value = object.Find(key)) return *value;
  } else if (key.is_integral() && (object.is_sequence() || object.is_string())) {
    int64_t length = static_cast<int64_t>(Length(object));
    int64_t index = key.integer() < 0 ? key.integer() + length : key.integer();
    if (index >= 0 && index < length) {
      if (object.is_sequence()) return object.items()[index];
      const std::string& text = object.string();
      Step(text.size() / 64);
      size_t pos = 0;
      for (; index > 0; --index) NextCodePoint(text, pos);
      size_t begin = pos;
      NextCodePoint(text, pos);
      return NewString(text.substr(begin, pos - begin));
    }
  }
  // As in Jinja, a name that is no key may be an attribute.
  if (key.is_string() && !key.string().starts_with("__")) {
    Value value = object.name_space() || object.loop() || object.callable()
                      ? GetAttribute(object, key.string())
                      : MethodOf(*this, object, key.string());
    if (!value.is_undefined()) return value;
  }
  if (key.is_string()) {
    return Value::UndefinedBecause(absl::StrCat("'", ObjectName(object),
                                                object.is_none() ? "" : " object",
                                                "' has no attribute '", key.string(), "'"));
  }
  return Value::UndefinedBecause(
      absl::StrCat(ObjectName(object), " object has no element ", key.Repr()));
}

Value Runtime::Slice(const Value& object, const Value& start, const Value& stop,
                     const Value& step) {
  if (object.is_undefined()) return Fail(object.undefined_reason());
  for (const Value* bound : {&start, &stop, &step}) {
    if (!bound->is_none() && !bound->is_integral()) {
      return Fail(absl::StrCat("slice indices must be integers or None, not ", bound->TypeName()));
    }
  }
  int64_t stride = step.is_none() ? 1 : step.integer();
  if (stride == 0) return Fail("slice step cannot be zero");
  if (!object.is_sequence() && !object.is_string()) {
    return Fail(absl::StrCat("'", object.TypeName(), "' object cannot be sliced"));
  }
  List items = Iterate(object);
  List picked;
  std::string text;
  for (size_t index : SliceIndexes(static_cast<int64_t>(items.size()), start, stop, stride)) {
    if (object.is_string()) {
      text += items[index].string();
    } else {
      picked.push_back(items[index]);
    }
  }
  Step(items.size() / 16);
  if (object.is_string()) return NewString(std::move(text), object.is_markup());
  return object.is_tuple() ? NewTuple(std::move(picked)) : NewList(std::move(picked));
}

}  // namespace plumbline::jinja
