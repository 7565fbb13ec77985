// Runtime: what one rendering shares: limits, the first error, the objects that macros and loops
// leave behind; and the tables of built-in filters, tests, functions and methods. One per
// rendering, used by one thread.
//
// Errors stick. Once Fail was called every operation goes on with harmless values and its result is
// thrown away; whatever repeats asks failed().
#pragma once

#include <chrono>
#include <ctime>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/text/jinja/render_limits.h"
#include "coordinator/text/jinja/value.h"

namespace plumbline::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `index` or called `name`; null when it was not given.
  const Value* Get(size_t index, std::string_view name) const;
};

// Reads arguments with defaults and reports those that no parameter takes.
class Runtime;
class ArgumentReader {
 public:
  ArgumentReader(Runtime& runtime, const char* function, const Arguments& arguments)
      : runtime_(runtime), function_(function), arguments_(arguments) {}
  const Value* Next(std::string_view name);  // null when not given
  Value Next(std::string_view name, Value fallback);
  int64_t NextInteger(std::string_view name, int64_t fallback);
  bool NextFlag(std::string_view name, bool fallback);
  std::string NextString(std::string_view name, std::string fallback);
  Value Required(std::string_view name);
  void Done();  // an error if arguments are left

 private:
  Runtime& runtime_;
  const char* function_;
  const Arguments& arguments_;
  size_t index_ = 0;
  size_t num_named_ = 0;
};

struct Callable {
  std::string name;
  std::function<Value(Runtime&, const Arguments&)> call;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
  Value* Find(std::string_view name);
};

struct LoopState {
  std::shared_ptr<const List> items;
  size_t index = 0;
  std::vector<Value> last_changed;
  bool has_changed = false;
};

class Runtime {
 public:
  Runtime(std::time_t now, const RenderLimits& limits) : now_(now), limits_(limits) {}

  Value Fail(std::string_view message);           // at the current line; returns undefined
  Value FailExhausted(std::string_view message);  // a limit
  bool failed() const { return !status_.ok(); }
  const absl::Status& status() const { return status_; }
  void set_line(int line) { line_ = line; }
  int line() const { return line_; }
  std::time_t now() const { return now_; }

  void Step(size_t num_steps = 1);
  // Accounts for finding `part` in `text`, before it is done: at worst a comparison at every byte.
  void StepSearch(std::string_view text, std::string_view part);
  // Accounts for a new string or container of that size.
  void Charge(size_t num_bytes);
  // Counts nesting of macros and expressions while it lives.
  class Nested {
   public:
    explicit Nested(Runtime& runtime);
    ~Nested() { --runtime_.depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    Runtime& runtime_;
  };

  // New values, within the limits.
  Value NewString(std::string text, bool is_markup = false);
  Value NewList(List items);
  Value NewTuple(List items);
  Value NewGenerator(List items);
  Value NewDict(Entries entries);
  Value NewCallable(std::string name, std::function<Value(Runtime&, const Arguments&)> call);
  Namespace* NewNamespace();
  LoopState* NewLoop();

  Value Call(const Value& callee, const Arguments& arguments);

  // What a for loop would walk over; fails for values that cannot be iterated over.
  List Iterate(const Value& value);
  Value GetAttribute(const Value& object, const std::string& name);  // object.name
  Value GetItem(const Value& object, const Value& key);              // object[key]
  Value Slice(const Value& object, const Value& start, const Value& stop, const Value& step);
  size_t Length(const Value& value);

  Value Arithmetic(const std::string& op, const Value& a, const Value& b);
  bool Compare(const std::string& op, const Value& a, const Value& b);
  bool Contains(const Value& container, const Value& item);
  Value Concat(const std::vector<Value>& parts);  // ~

  Value ApplyFilter(const std::string& name, const Value& value, const Arguments& arguments);
  bool ApplyTest(const std::string& name, const Value& value, const Arguments& arguments);

 private:
  friend class Nested;
  Value CheckContainer(Value value, size_t num_items);

  std::time_t now_;
  absl::Status status_;
  int line_ = 0;
  int depth_ = 0;
  size_t num_steps_ = 0;
  size_t num_calls_ = 0;  // of Step
  const RenderLimits limits_;
  const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  size_t num_bytes_ = 0;
  std::deque<Callable> callables_;
  std::deque<Namespace> namespaces_;
  std::deque<LoopState> loops_;
};

// Built-ins. A method belongs to a value of a type; undefined when the type has none of that name.
Value MethodOf(Runtime& runtime, const Value& object, const std::string& name);
Value GlobalFunction(Runtime& runtime, const std::string& name);  // undefined: no such function

// Python's "..." % values.
Value FormatPercent(Runtime& runtime, const std::string& format, const Value& values);

using FilterFunction = Value (*)(Runtime&, const Value&, const Arguments&);
FilterFunction FindTextFilter(const std::string& name);      // null: no such filter
FilterFunction FindSequenceFilter(const std::string& name);  // likewise

}  // namespace plumbline::jinja
