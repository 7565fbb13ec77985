#include "coordinator/text/jinja/runtime.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/lexer.h"
#include "coordinator/text/unicode.h"

namespace plumbline::jinja {
namespace {

constexpr size_t kCallsPerLook = 16;  // a look at the clock costs as much as a small step
constexpr size_t kMaxStringBytes = size_t{64} << 20;  // of one
constexpr int kMaxDepth = 1000;
constexpr int kMaxContainerDepth = 250;

List Characters(const std::string& text) {
  List characters;
  for (size_t pos = 0; pos < text.size();) {
    size_t begin = pos;
    NextCodePoint(text, pos);
    characters.emplace_back(text.substr(begin, pos - begin));
  }
  return characters;
}

}  // namespace

const Value* Arguments::Get(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

const Value* ArgumentReader::Next(std::string_view name) {
  bool by_name = index_ >= arguments_.positional.size();
  const Value* value = arguments_.Get(index_++, name);
  if (value != nullptr && by_name) ++num_named_;
  return value;
}

Value ArgumentReader::Next(std::string_view name, Value fallback) {
  const Value* value = Next(name);
  return value == nullptr ? fallback : *value;
}

int64_t ArgumentReader::NextInteger(std::string_view name, int64_t fallback) {
  const Value* value = Next(name);
  if (value == nullptr || value->is_none()) return fallback;
  if (value->is_integral()) return value->integer();
  runtime_.Fail(absl::StrCat(function_, ": ", std::string(name), " must be an integer, not ",
                             value->TypeName()));
  return fallback;
}

bool ArgumentReader::NextFlag(std::string_view name, bool fallback) {
  const Value* value = Next(name);
  return value == nullptr ? fallback : value->Truth();
}

std::string ArgumentReader::NextString(std::string_view name, std::string fallback) {
  const Value* value = Next(name);
  if (value == nullptr || value->is_none()) return fallback;
  if (value->is_string()) return value->string();
  runtime_.Fail(absl::StrCat(function_, ": ", std::string(name), " must be a string, not ",
                             value->TypeName()));
  return fallback;
}

Value ArgumentReader::Required(std::string_view name) {
  const Value* value = Next(name);
  if (value != nullptr) return *value;
  return runtime_.Fail(absl::StrCat(function_, ": argument '", std::string(name), "' is missing"));
}

void ArgumentReader::Done() {
  if (arguments_.positional.size() > index_ || arguments_.named.size() > num_named_) {
    runtime_.Fail(absl::StrCat(function_, " takes no such arguments"));
  }
}

Value* Namespace::Find(std::string_view name) {
  for (auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

Value Runtime::Fail(std::string_view message) {
  if (status_.ok()) status_ = TemplateError(line_, message);
  return Value();
}

Value Runtime::FailExhausted(std::string_view message) {
  if (status_.ok()) {
    status_ = absl::ResourceExhaustedError(TemplateError(line_, message).message());
  }
  return Value();
}

void Runtime::Step(size_t num_steps) {
  num_steps_ += num_steps;
  if (num_steps_ > limits_.max_steps) FailExhausted("rendering takes too many steps");
  if (++num_calls_ % kCallsPerLook != 0) return;
  if (std::chrono::steady_clock::now() - begun_ > limits_.max_time)
    FailExhausted("rendering takes too long");
}

void Runtime::StepSearch(std::string_view text, std::string_view part) {
  Step(text.size() / 64 * (1 + part.size() / 64));
}

void Runtime::Charge(size_t num_bytes) {
  num_bytes_ += num_bytes;
  if (num_bytes_ > limits_.max_bytes || num_bytes > kMaxStringBytes)
    FailExhausted("rendering takes too much memory");
}

Runtime::Nested::Nested(Runtime& runtime) : runtime_(runtime) {
  if (++runtime_.depth_ > kMaxDepth)
    runtime_.FailExhausted("macros or expressions are nested too deep");
}

Value Runtime::NewString(std::string text, bool is_markup) {
  Charge(text.size());
  return Value(std::move(text), is_markup);
}

Value Runtime::CheckContainer(Value value, size_t num_items) {
  Charge(num_items * sizeof(Value));
  if (value.depth() > kMaxContainerDepth) return FailExhausted("values are nested too deep");
  if (value.text_bytes() > kMaxStringBytes) return FailExhausted("a list or mapping is too large");
  return value;
}

Value Runtime::NewList(List items) {
  size_t num_items = items.size();
  return CheckContainer(Value::MakeList(std::move(items)), num_items);
}

Value Runtime::NewTuple(List items) {
  size_t num_items = items.size();
  return CheckContainer(Value::MakeTuple(std::move(items)), num_items);
}

Value Runtime::NewGenerator(List items) {
  size_t num_items = items.size();
  return CheckContainer(Value::MakeGenerator(std::move(items)), num_items);
}

Value Runtime::NewDict(Entries entries) {
  size_t num_items = 2 * entries.size();
  return CheckContainer(Value::MakeDict(std::move(entries)), num_items);
}

Value Runtime::NewCallable(std::string name,
                           std::function<Value(Runtime&, const Arguments&)> call) {
  Charge(sizeof(Callable));
  return Value(&callables_.emplace_back(Callable{std::move(name), std::move(call)}));
}

Namespace* Runtime::NewNamespace() {
  Charge(sizeof(Namespace));
  return &namespaces_.emplace_back();
}

LoopState* Runtime::NewLoop() {
  Charge(sizeof(LoopState));
  return &loops_.emplace_back();
}

Value Runtime::Call(const Value& callee, const Arguments& arguments) {
  Nested nested(*this);
  Step();
  if (failed()) return Value();
  if (callee.callable() != nullptr) return callee.callable()->call(*this, arguments);
  if (callee.is_undefined()) return Fail(callee.undefined_reason());
  return Fail(absl::StrCat("'", callee.TypeName(), "' object is not callable"));
}

List Runtime::Iterate(const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_sequence()) return value.items();
  if (Generator* generator = value.generator()) {
    return std::exchange(generator->is_used_up, true) ? List() : generator->items->items;
  }
  if (value.is_string()) {
    Charge(value.string().size() * sizeof(Value));
    return failed() ? List() : Characters(value.string());
  }
  if (value.is_dict()) {
    List keys;
    for (const auto& entry : value.entries()) keys.push_back(entry.first);
    return keys;
  }
  Fail(absl::StrCat("'", value.TypeName(), "' object is not iterable"));
  return {};
}

size_t Runtime::Length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) return CountCodePoints(value.string());
  if (value.is_sequence()) return value.items().size();
  if (value.is_dict()) return value.entries().size();
  if (value.loop() != nullptr) return value.loop()->items->size();
  Fail(absl::StrCat("object of type '", value.TypeName(), "' has no len()"));
  return 0;
}

}  // namespace plumbline::jinja
