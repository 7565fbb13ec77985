#include "coordinator/text/jinja/interpreter.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/runtime.h"

namespace plumbline::jinja {
namespace {

// Names of one block. Reads go on to the parent, writes stay here.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string, Value>> names;
  bool captured = false;  // a macro was made here or further in, and may outlive the block

  Value* Find(std::string_view name) {
    for (auto& [key, value] : names) {
      if (key == name) return &value;
    }
    return nullptr;
  }
  void Set(const std::string& name, Value value) {
    if (Value* present = Find(name)) {
      *present = std::move(value);
    } else {
      names.emplace_back(name, std::move(value));
    }
  }
};

enum class Flow { kNext, kBreak, kContinue };

class Interpreter {
 public:
  Interpreter(const Value& variables, std::time_t now, const RenderLimits& limits)
      : variables_(variables), runtime_(now, limits) {}

  absl::StatusOr<std::string> Run(const Template& parsed) {
    std::string out;
    Enter(nullptr, [&](Scope& scope) { Execute(parsed.body, scope, out); });
    if (runtime_.failed()) return runtime_.status();
    return out;
  }

 private:
  // Runs `body` in a new scope, which is kept to the end of the rendering when a macro refers to
  // it.
  template <typename Body>
  void Enter(Scope* parent, Body body) {
    auto scope = std::make_unique<Scope>();
    scope->parent = parent;
    body(*scope);
    if (scope->captured) {
      if (parent != nullptr) parent->captured = true;
      retained_.push_back(std::move(scope));
    }
  }

  Value Lookup(const std::string& name, Scope& scope) {
    for (Scope* s = &scope; s != nullptr; s = s->parent) {
      if (Value* value = s->Find(name)) return *value;
    }
    if (const Value* value = variables_.FindKey(name)) return *value;
    Value function = GlobalFunction(runtime_, name);
    if (!function.is_undefined()) return function;
    return Value::UndefinedBecause(absl::StrCat("'", name, "' is undefined"));
  }

  // ---- statements

  Flow Execute(const Body& body, Scope& scope, std::string& out) {
    for (const auto& statement : body) {
      Flow flow = Execute(*statement, scope, out);
      if (runtime_.failed()) return Flow::kNext;
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  void Write(std::string_view text, std::string& out) {
    runtime_.Charge(text.size());
    out += text;
  }

  Flow Execute(const Statement& statement, Scope& scope, std::string& out) {
    using Kind = Statement::Kind;
    runtime_.Step();
    runtime_.set_line(statement.line);
    if (runtime_.failed()) return Flow::kNext;
    switch (statement.kind) {
      case Kind::kText:
        Write(statement.text, out);
        return Flow::kNext;
      case Kind::kOutput: {
        Value value = Evaluate(*statement.expression, scope);
        if (value.is_string()) {
          Write(value.string(), out);
        } else {
          Write(value.Str(), out);
        }
        return Flow::kNext;
      }
      case Kind::kFor:
        ExecuteFor(statement, scope, out);
        return Flow::kNext;
      case Kind::kIf:
        for (const Statement::Branch& branch : statement.branches) {
          if (Evaluate(*branch.condition, scope).Truth()) return Execute(branch.body, scope, out);
          if (runtime_.failed()) return Flow::kNext;
        }
        return Execute(statement.else_body, scope, out);
      case Kind::kSet:
        Assign(statement.target, Evaluate(*statement.expression, scope), scope);
        return Flow::kNext;
      case Kind::kSetBlock: {
        Value value = runtime_.NewString(Capture(statement.body, scope));
        if (statement.expression != nullptr)
          value = EvaluateFilter(*statement.expression, scope, &value);
        Assign(statement.target, std::move(value), scope);
        return Flow::kNext;
      }
      case Kind::kMacro:
        scope.Set(statement.macro->name, MakeMacro(*statement.macro, scope));
        return Flow::kNext;
      case Kind::kCallBlock: {
        const Expression& call = *statement.expression;
        Value callee = Evaluate(*call.children[0], scope);
        Arguments arguments = EvaluateArguments(call.arguments, scope);
        arguments.named.emplace_back("caller", MakeMacro(*statement.macro, scope));
        Write(runtime_.Call(callee, arguments).Str(), out);
        return Flow::kNext;
      }
      case Kind::kFilterBlock: {
        Value value = runtime_.NewString(Capture(statement.body, scope));
        Write(EvaluateFilter(*statement.expression, scope, &value).Str(), out);
        return Flow::kNext;
      }
      case Kind::kScope: {
        Flow flow = Flow::kNext;
        std::vector<Value> values;
        for (const auto& assignment : statement.assignments)
          values.push_back(Evaluate(*assignment.second, scope));
        Enter(&scope, [&](Scope& inner) {
          for (size_t i = 0; i < values.size(); ++i) {
            Assign(statement.assignments[i].first, std::move(values[i]), inner);
          }
          flow = Execute(statement.body, inner, out);
        });
        return flow;
      }
      case Kind::kBreak:
        return Flow::kBreak;
      case Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  std::string Capture(const Body& body, Scope& scope) {
    std::string text;
    Enter(&scope, [&](Scope& inner) { Execute(body, inner, text); });
    return text;
  }

  void Assign(const Target& target, Value value, Scope& scope) {
    if (runtime_.failed()) return;
    if (!target.attribute.empty()) {
      Value object = Lookup(target.names[0], scope);
      if (object.name_space() == nullptr) {
        runtime_.Fail("cannot assign attribute on non-namespace object");
      } else if (Value* present = object.name_space()->Find(target.attribute)) {
        *present = std::move(value);
      } else {
        object.name_space()->attributes.emplace_back(target.attribute, std::move(value));
      }
      return;
    }
    if (!target.unpack) {
      scope.Set(target.names[0], std::move(value));
      return;
    }
    if (value.is_undefined()) {
      runtime_.Fail(value.undefined_reason());
      return;
    }
    List items = runtime_.Iterate(value);
    if (runtime_.failed()) return;
    if (items.size() != target.names.size()) {
      runtime_.Fail(absl::StrCat("cannot unpack ", items.size(), " values into ",
                                 target.names.size(), " names"));
      return;
    }
    for (size_t i = 0; i < items.size(); ++i) scope.Set(target.names[i], items[i]);
  }

  void ExecuteFor(const Statement& statement, Scope& scope, std::string& out) {
    List items = runtime_.Iterate(Evaluate(*statement.expression, scope));
    if (statement.condition != nullptr) {
      List kept;
      for (const Value& item : items) {
        bool keep = false;
        Enter(&scope, [&](Scope& inner) {
          Assign(statement.target, item, inner);
          keep = Evaluate(*statement.condition, inner).Truth();
        });
        if (runtime_.failed()) return;
        if (keep) kept.push_back(item);
      }
      items = std::move(kept);
    }
    if (runtime_.failed()) return;
    LoopState* loop = runtime_.NewLoop();
    loop->items = std::make_shared<const List>(std::move(items));
    std::shared_ptr<const List> list = loop->items;
    for (size_t i = 0; i < list->size() && !runtime_.failed(); ++i) {
      loop->index = i;
      runtime_.Step();
      Flow flow = Flow::kNext;
      Enter(&scope, [&](Scope& inner) {
        inner.Set("loop", Value(loop));
        Assign(statement.target, (*list)[i], inner);
        flow = Execute(statement.body, inner, out);
      });
      if (flow == Flow::kBreak) break;
    }
    if (list->empty()) {
      Enter(&scope, [&](Scope& inner) { Execute(statement.else_body, inner, out); });
    }
  }

  Value MakeMacro(const Macro& macro, Scope& scope) {
    scope.captured = true;
    return runtime_.NewCallable(macro.name,
                                [this, &macro, &scope](Runtime&, const Arguments& arguments) {
                                  return CallMacro(macro, scope, arguments);
                                });
  }

  Value CallMacro(const Macro& macro, Scope& closure, const Arguments& arguments) {
    int line = runtime_.line();
    std::string out;
    Enter(&closure, [&](Scope& scope) {
      BindParameters(macro, arguments, scope);
      Execute(macro.body, scope, out);
    });
    runtime_.set_line(line);
    return runtime_.NewString(std::move(out));
  }

  void BindParameters(const Macro& macro, const Arguments& arguments, Scope& scope) {
    std::vector<bool> used(arguments.named.size(), false);
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      const Parameter& parameter = macro.parameters[i];
      const Value* given = i < arguments.positional.size() ? &arguments.positional[i] : nullptr;
      for (size_t j = 0; j < arguments.named.size(); ++j) {
        if (arguments.named[j].first != parameter.name) continue;
        if (given != nullptr) {
          runtime_.Fail(absl::StrCat("macro '", macro.name, "' got two values for argument '",
                                     parameter.name, "'"));
        }
        given = &arguments.named[j].second;
        used[j] = true;
      }
      if (given != nullptr) {
        scope.Set(parameter.name, *given);
      } else if (parameter.default_value != nullptr) {
        scope.Set(parameter.name, Evaluate(*parameter.default_value, scope));
      } else {
        scope.Set(parameter.name, Value::UndefinedBecause(absl::StrCat(
                                      "parameter '", parameter.name, "' was not provided")));
      }
    }
    Entries further_named;
    for (size_t j = 0; j < arguments.named.size(); ++j) {
      const auto& [name, value] = arguments.named[j];
      if (used[j]) continue;
      if (name == "caller") {
        scope.Set("caller", value);
      } else if (macro.takes_kwargs) {
        further_named.emplace_back(Value(name), value);
      } else {
        runtime_.Fail(
            absl::StrCat("macro '", macro.name, "' takes no keyword argument '", name, "'"));
      }
    }
    if (macro.takes_kwargs) scope.Set("kwargs", runtime_.NewDict(std::move(further_named)));
    size_t num_bound = std::min(macro.parameters.size(), arguments.positional.size());
    List further(arguments.positional.begin() + num_bound, arguments.positional.end());
    if (!further.empty() && !macro.takes_varargs) {
      runtime_.Fail(absl::StrCat("macro '", macro.name, "' takes not more than ",
                                 macro.parameters.size(), " argument(s)"));
    }
    if (macro.takes_varargs) scope.Set("varargs", runtime_.NewTuple(std::move(further)));
  }

  // ---- expressions

  Arguments EvaluateArguments(const ArgumentList& list, Scope& scope) {
    Arguments arguments;
    for (const ExpressionPtr& positional : list.positional)
      arguments.positional.push_back(Evaluate(*positional, scope));
    for (const auto& [name, value] : list.named)
      arguments.named.emplace_back(name, Evaluate(*value, scope));
    if (list.star != nullptr) {
      for (Value& value : runtime_.Iterate(Evaluate(*list.star, scope)))
        arguments.positional.push_back(std::move(value));
    }
    if (list.double_star != nullptr) {
      Value further = Evaluate(*list.double_star, scope);
      if (!further.is_dict()) runtime_.Fail("the argument after ** must be a mapping");
      if (further.is_dict()) {
        for (const auto& [name, value] : further.entries())
          arguments.named.emplace_back(name.Str(), value);
      }
    }
    return arguments;
  }

  List EvaluateAll(const Expression& node, Scope& scope) {
    List values;
    values.reserve(node.children.size());
    for (const ExpressionPtr& child : node.children) {
      values.push_back(child == nullptr ? Value(None()) : Evaluate(*child, scope));
    }
    return values;
  }

  // A filter chain; its innermost filter, which has no operand of its own, is given `input`.
  Value EvaluateFilter(const Expression& node, Scope& scope, const Value* input) {
    Value value;
    if (node.children.empty()) {
      value = *input;
    } else if (input != nullptr && node.children[0]->kind == Expression::Kind::kFilter) {
      value = EvaluateFilter(*node.children[0], scope, input);
    } else {
      value = Evaluate(*node.children[0], scope);
    }
    Arguments arguments = EvaluateArguments(node.arguments, scope);
    runtime_.set_line(node.line);
    return runtime_.failed() ? Value() : runtime_.ApplyFilter(node.name, value, arguments);
  }

  Value EvaluateCompare(const Expression& node, Scope& scope) {
    Value left = Evaluate(*node.children[0], scope);
    for (size_t i = 0; i < node.operators.size(); ++i) {
      Value right = Evaluate(*node.children[i + 1], scope);
      if (runtime_.failed() || !runtime_.Compare(node.operators[i], left, right)) return false;
      left = std::move(right);
    }
    return true;
  }

  Value EvaluateSign(const Expression& node, Scope& scope) {
    Value value = Evaluate(*node.children[0], scope);
    if (runtime_.failed()) return Value();
    bool negate = node.kind == Expression::Kind::kNegate;
    if (value.is_integral()) return runtime_.Arithmetic("*", value, negate ? -1 : 1);
    if (value.is_float()) return negate ? -value.number() : value.number();
    if (value.is_undefined()) return runtime_.Fail(value.undefined_reason());
    return runtime_.Fail(absl::StrCat("bad operand type for unary ", negate ? "-" : "+", ": '",
                                      value.TypeName(), "'"));
  }

  Value Evaluate(const Expression& node, Scope& scope) {
    using Kind = Expression::Kind;
    Runtime::Nested nested(runtime_);
    runtime_.Step();
    if (runtime_.failed()) return Value();
    runtime_.set_line(node.line);
    switch (node.kind) {
      case Kind::kConstant:
        return node.constant;
      case Kind::kName:
        return Lookup(node.name, scope);
      case Kind::kList:
        return runtime_.NewList(EvaluateAll(node, scope));
      case Kind::kTuple:
        return runtime_.NewTuple(EvaluateAll(node, scope));
      case Kind::kDict: {
        List values = EvaluateAll(node, scope);
        Entries entries;
        for (size_t i = 0; i + 1 < values.size(); i += 2)
          entries.emplace_back(values[i], values[i + 1]);
        return runtime_.NewDict(std::move(entries));
      }
      case Kind::kAnd: {
        Value left = Evaluate(*node.children[0], scope);
        return left.Truth() ? Evaluate(*node.children[1], scope) : left;
      }
      case Kind::kOr: {
        Value left = Evaluate(*node.children[0], scope);
        return left.Truth() ? left : Evaluate(*node.children[1], scope);
      }
      case Kind::kNot:
        return !Evaluate(*node.children[0], scope).Truth();
      case Kind::kConditional:
        if (Evaluate(*node.children[0], scope).Truth()) return Evaluate(*node.children[1], scope);
        if (node.children.size() > 2) return Evaluate(*node.children[2], scope);
        return Value::UndefinedBecause(
            "the inline if-expression evaluated to false and no else section was defined");
      case Kind::kFilter:
        return EvaluateFilter(node, scope, nullptr);
      case Kind::kCompare:
        return EvaluateCompare(node, scope);
      case Kind::kNegate:
      case Kind::kPositive:
        return EvaluateSign(node, scope);
      default:
        return EvaluateOperands(node, scope);
    }
  }

  // Nodes whose operands are all evaluated first.
  Value EvaluateOperands(const Expression& node, Scope& scope) {
    using Kind = Expression::Kind;
    List operands = EvaluateAll(node, scope);
    Arguments arguments = EvaluateArguments(node.arguments, scope);
    if (runtime_.failed()) return Value();
    runtime_.set_line(node.line);
    switch (node.kind) {
      case Kind::kAttribute:
        return runtime_.GetAttribute(operands[0], node.name);
      case Kind::kItem:
        return runtime_.GetItem(operands[0], operands[1]);
      case Kind::kSlice:
        return runtime_.Slice(operands[0], operands[1], operands[2], operands[3]);
      case Kind::kCall:
        return runtime_.Call(operands[0], arguments);
      case Kind::kTest:
        return runtime_.ApplyTest(node.name, operands[0], arguments);
      case Kind::kArithmetic:
        return runtime_.Arithmetic(node.name, operands[0], operands[1]);
      case Kind::kConcat:
        return runtime_.Concat(operands);
      default:
        return Value();
    }
  }

  const Value& variables_;
  // Scopes that macros refer to; destroyed after runtime_'s macros could last be called.
  std::vector<std::unique_ptr<Scope>> retained_;
  Runtime runtime_;
};

}  // namespace

absl::StatusOr<std::string> Render(const Template& parsed, const Value& variables,
                                   std::time_t now, const RenderLimits& limits) {
  return Interpreter(variables, now, limits).Run(parsed);
}

}  // namespace plumbline::jinja
