// Filters of lists and mappings, and the lookup of filters by name.
#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/python_text.h"
#include "coordinator/text/jinja/runtime.h"

namespace plumbline::jinja {
namespace {

// "a.b.0" of a value, as filters take attributes.
Value AttributePath(Runtime& in, Value value, const Value& path) {
  if (path.is_integral()) return in.GetItem(value, path);
  for (const std::string& part : Split(path.Str(), ".", -1)) {
    int64_t index;
    bool is_index = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos &&
                    absl::SimpleAtoi(part, &index);
    value = in.GetItem(value, is_index ? Value(index) : Value(part));
    if (in.failed()) return Value();
  }
  return value;
}

Value FoldCase(const Value& value, bool case_sensitive) {
  return value.is_string() && !case_sensitive ? Value(Lower(value.string())) : value;
}

Value LengthFilter(Runtime& in, const Value& value, const Arguments&) { return in.Length(value); }

Value ListFilter(Runtime& in, const Value& value, const Arguments&) {
  return in.NewList(in.Iterate(value));
}

Value ItemsFilter(Runtime& in, const Value& value, const Arguments&) {
  if (value.is_undefined()) return in.NewGenerator({});
  if (!value.is_dict()) return in.Fail("can only get item pairs from a mapping");
  return in.NewGenerator(in.Iterate(in.Call(MethodOf(in, value, "items"), {})));
}

Value DefaultFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "default", arguments);
  Value fallback = reader.Next("default_value", "");
  bool also_false = reader.NextFlag("boolean", false);
  reader.Done();
  return value.is_undefined() || (also_false && !value.Truth()) ? fallback : value;
}

Value JoinFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "join", arguments);
  std::string separator = reader.Next("d", "").Str();
  const Value* attribute = reader.Next("attribute");
  reader.Done();
  std::string text;
  bool first = true;
  for (Value& item : in.Iterate(value)) {
    if (attribute != nullptr && !attribute->is_none()) item = AttributePath(in, item, *attribute);
    in.Charge(separator.size() + item.text_bytes());
    if (in.failed()) return Value();
    if (!first) text += separator;
    text += item.Str();
    first = false;
  }
  return in.NewString(std::move(text));
}

template <bool kLast>
Value EndFilter(Runtime& in, const Value& value, const Arguments&) {
  // Python's reversed() needs to know where the end is.
  if (kLast && value.generator() != nullptr) return in.Fail("'generator' object is not reversible");
  List items = in.Iterate(value);
  if (items.empty())
    return Value::UndefinedBecause(kLast ? "no last item, sequence was empty"
                                         : "no first item, sequence was empty");
  return kLast ? items.back() : items.front();
}

Value ReverseFilter(Runtime& in, const Value& value, const Arguments&) {
  if (value.is_string()) return in.NewString(Reversed(value.string()));
  List items = in.Iterate(value);
  std::reverse(items.begin(), items.end());
  return value.generator() ? in.NewList(std::move(items)) : in.NewGenerator(std::move(items));
}

// Sorts by keys made once; fails when two keys have no order.
List SortedBy(Runtime& in, List items, const List& keys, bool reverse) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  in.Step(order.size());
  bool comparable = true;
  for (size_t i = 1; i < keys.size(); ++i) comparable &= Order(keys[0], keys[i]).has_value();
  if (!comparable) {
    in.Fail("'<' not supported between these values");
    return {};
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    int sign = Order(keys[a], keys[b]).value_or(0);
    return reverse ? sign > 0 : sign < 0;
  });
  List sorted;
  for (size_t i : order) sorted.push_back(items[i]);
  return sorted;
}

Value SortFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "sort", arguments);
  bool reverse = reader.NextFlag("reverse", false);
  bool case_sensitive = reader.NextFlag("case_sensitive", false);
  Value attribute = reader.Next("attribute", None());
  reader.Done();
  List items = in.Iterate(value);
  List keys;
  for (const Value& item : items) {
    List parts;  // several attributes may be given, separated by commas
    if (attribute.is_string()) {
      for (const std::string& path : Split(attribute.string(), ",", -1)) {
        parts.push_back(FoldCase(AttributePath(in, item, Value(path)), case_sensitive));
      }
    } else {
      parts.push_back(FoldCase(attribute.is_none() ? item : AttributePath(in, item, attribute),
                               case_sensitive));
    }
    keys.push_back(parts.size() == 1 ? parts[0] : Value::MakeList(std::move(parts)));
    if (in.failed()) return Value();
  }
  return in.NewList(SortedBy(in, std::move(items), keys, reverse));
}

Value DictSortFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "dictsort", arguments);
  bool case_sensitive = reader.NextFlag("case_sensitive", false);
  std::string by = reader.NextString("by", "key");
  bool reverse = reader.NextFlag("reverse", false);
  reader.Done();
  if (!value.is_dict())
    return in.Fail(absl::StrCat("dictsort needs a mapping, not ", value.TypeName()));
  if (by != "key" && by != "value")
    return in.Fail("you can only sort by either \"key\" or \"value\"");
  List items, keys;
  for (const auto& [key, item] : value.entries()) {
    items.push_back(in.NewTuple({key, item}));
    keys.push_back(FoldCase(by == "key" ? key : item, case_sensitive));
  }
  return in.NewList(SortedBy(in, std::move(items), keys, reverse));
}

Value UniqueFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "unique", arguments);
  bool case_sensitive = reader.NextFlag("case_sensitive", false);
  Value attribute = reader.Next("attribute", None());
  reader.Done();
  List kept, keys;
  for (const Value& item : in.Iterate(value)) {
    Value key =
        FoldCase(attribute.is_none() ? item : AttributePath(in, item, attribute), case_sensitive);
    in.Step(keys.size() / 4);
    if (in.failed()) return Value();
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& seen) { return Equal(seen, key); }))
      continue;
    keys.push_back(std::move(key));
    kept.push_back(item);
  }
  return in.NewGenerator(std::move(kept));
}

Value SumFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "sum", arguments);
  Value attribute = reader.Next("attribute", None());
  Value sum = reader.Next("start", 0);
  reader.Done();
  for (const Value& item : in.Iterate(value)) {
    sum = in.Arithmetic("+", sum, attribute.is_none() ? item : AttributePath(in, item, attribute));
    if (in.failed()) return Value();
  }
  return sum;
}

template <bool kLargest>
Value ExtremeFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, kLargest ? "max" : "min", arguments);
  bool case_sensitive = reader.NextFlag("case_sensitive", false);
  Value attribute = reader.Next("attribute", None());
  reader.Done();
  List items = in.Iterate(value);
  if (items.empty()) return Value::UndefinedBecause("no aggregated item, sequence was empty");
  auto key_of = [&](const Value& item) {
    return FoldCase(attribute.is_none() ? item : AttributePath(in, item, attribute),
                    case_sensitive);
  };
  Value best = items[0];
  for (const Value& item : items) {
    if (in.Compare(kLargest ? ">" : "<", key_of(item), key_of(best))) best = item;
    if (in.failed()) return Value();
  }
  return best;
}

Value MapFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  if (!value.Truth()) return in.NewGenerator({});  // also of what cannot be iterated over
  const Value* attribute = arguments.Get(SIZE_MAX, "attribute");
  const Value* fallback = arguments.Get(SIZE_MAX, "default");
  if (attribute == nullptr &&
      (arguments.positional.empty() || !arguments.positional[0].is_string())) {
    return in.Fail("map requires a filter argument");
  }
  Arguments rest;
  if (attribute == nullptr) {
    rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
    rest.named = arguments.named;
  }
  List mapped;
  for (const Value& item : in.Iterate(value)) {
    Value result = attribute != nullptr
                       ? AttributePath(in, item, *attribute)
                       : in.ApplyFilter(arguments.positional[0].string(), item, rest);
    if (in.failed()) return Value();
    mapped.push_back(result.is_undefined() && fallback != nullptr ? *fallback : result);
  }
  return in.NewGenerator(std::move(mapped));
}

// select, reject, selectattr, rejectattr: keep the items for which a test (or else truth) is
// `kKeep`.
template <bool kByAttribute, bool kKeep>
Value SelectFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  if (!value.Truth()) return in.NewGenerator({});  // also of what cannot be iterated over
  size_t num_used = kByAttribute ? 1 : 0;
  if (arguments.positional.size() < num_used)
    return in.Fail("missing parameter for attribute name");
  bool has_test = arguments.positional.size() > num_used;
  std::string test = has_test ? arguments.positional[num_used].Str() : "";
  Arguments rest;
  if (has_test)
    rest.positional.assign(arguments.positional.begin() + num_used + 1, arguments.positional.end());
  rest.named = arguments.named;
  List kept;
  for (const Value& item : in.Iterate(value)) {
    Value subject = kByAttribute ? AttributePath(in, item, arguments.positional[0]) : item;
    bool passes = has_test ? in.ApplyTest(test, subject, rest) : subject.Truth();
    if (in.failed()) return Value();
    if (passes == kKeep) kept.push_back(item);
  }
  return in.NewGenerator(std::move(kept));
}

Value AttrFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "attr", arguments);
  std::string name = reader.NextString("name", "");
  reader.Done();
  if (value.is_dict()) return MethodOf(in, value, name);  // attributes only, never items
  return in.GetAttribute(value, name);
}

Value BatchFilter(Runtime& in, const Value& value, const Arguments& arguments) {
  ArgumentReader reader(in, "batch", arguments);
  int64_t size = reader.NextInteger("linecount", 1);
  const Value* fill = reader.Next("fill_with");
  reader.Done();
  if (size < 1 || size > 100'000) return in.Fail("batch: size must be from 1 to 100000");
  List batches, batch;
  for (const Value& item : in.Iterate(value)) {
    batch.push_back(item);
    if (static_cast<int64_t>(batch.size()) == size)
      batches.push_back(in.NewList(std::exchange(batch, {})));
  }
  if (!batch.empty()) {
    if (fill != nullptr && !fill->is_none()) batch.resize(size, *fill);
    batches.push_back(in.NewList(std::move(batch)));
  }
  return in.NewGenerator(std::move(batches));
}

}  // namespace

FilterFunction FindSequenceFilter(const std::string& name) {
  static const StringMap<FilterFunction>& table =
      *new StringMap<FilterFunction>{{"length", LengthFilter},
                                     {"count", LengthFilter},
                                     {"list", ListFilter},
                                     {"items", ItemsFilter},
                                     {"default", DefaultFilter},
                                     {"d", DefaultFilter},
                                     {"join", JoinFilter},
                                     {"first", EndFilter<false>},
                                     {"last", EndFilter<true>},
                                     {"reverse", ReverseFilter},
                                     {"sort", SortFilter},
                                     {"dictsort", DictSortFilter},
                                     {"unique", UniqueFilter},
                                     {"sum", SumFilter},
                                     {"min", ExtremeFilter<false>},
                                     {"max", ExtremeFilter<true>},
                                     {"map", MapFilter},
                                     {"select", SelectFilter<false, true>},
                                     {"reject", SelectFilter<false, false>},
                                     {"selectattr", SelectFilter<true, true>},
                                     {"rejectattr", SelectFilter<true, false>},
                                     {"attr", AttrFilter},
                                     {"batch", BatchFilter}};
  auto it = table.find(name);
  return it == table.end() ? nullptr : it->second;
}

Value Runtime::ApplyFilter(const std::string& name, const Value& value,
                           const Arguments& arguments) {
  Nested nested(*this);
  Step();
  if (failed()) return Value();
  FilterFunction filter = FindTextFilter(name);
  if (filter == nullptr) filter = FindSequenceFilter(name);
  if (filter == nullptr) return Fail(absl::StrCat("no filter named '", name, "'"));
  Value result = filter(*this, value, arguments);
  return failed() ? Value() : result;
}

}  // namespace plumbline::jinja
