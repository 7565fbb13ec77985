// The syntax tree of a template. Immutable after parsing.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/text/jinja/value.h"

namespace plumbline::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

// Arguments of a call, filter or test as written: f(positional, name=value, *star, **double_star).
struct ArgumentList {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr star;
  ExpressionPtr double_star;
};

struct Expression {
  enum class Kind {
    kConstant,     // constant
    kName,         // name
    kList,         // children
    kTuple,        // children
    kDict,         // children: key, value, key, value, ...
    kAttribute,    // children[0] . name
    kItem,         // children[0] [ children[1] ]
    kSlice,        // children[0] [ children[1] : children[2] : children[3] ], null where left out
    kCall,         // children[0] ( arguments )
    kFilter,       // children[0] | name ( arguments ); no child inside a filter block
    kTest,         // children[0] is name ( arguments )
    kNot,          // children[0]
    kAnd,          // children[0], children[1]
    kOr,           // likewise
    kNegate,       // children[0]
    kPositive,     // children[0]
    kArithmetic,   // children[0] name children[1]; name is one of + - * / // % **
    kConcat,       // children joined by ~
    kCompare,      // children[0] operators[0] children[1] operators[1] ...
    kConditional,  // children[1] if children[0] else children[2], which may be null
  };
  Kind kind;
  int line = 0;
  int depth = 1;
  std::string name;
  Value constant;
  std::vector<ExpressionPtr> children;
  std::vector<std::string> operators;
  ArgumentList arguments;
};

// What a set or for assigns to: one name, several (unpacking), or an attribute of a namespace.
struct Target {
  std::vector<std::string> names;
  bool unpack = false;
  std::string attribute;  // names[0].attribute; empty for plain names
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Parameter {
  std::string name;
  ExpressionPtr default_value;  // null: none
};

struct Macro {
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
  bool takes_varargs = false;  // the body speaks of varargs, kwargs
  bool takes_kwargs = false;
};

struct Statement {
  enum class Kind {
    kText,         // text
    kOutput,       // expression
    kFor,          // target in expression if condition: body, else_body
    kIf,           // branches, else_body
    kSet,          // target = expression
    kSetBlock,     // target = body, filtered by expression unless that is null
    kMacro,        // macro
    kCallBlock,    // expression is a kCall; macro is its caller
    kFilterBlock,  // body, filtered by expression
    kScope,        // body with `assignments` in a scope of its own: with, generation
    kBreak,
    kContinue,
  };
  struct Branch {
    ExpressionPtr condition;
    Body body;
  };
  Kind kind;
  int line = 0;
  std::string text;
  Target target;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<Branch> branches;
  std::vector<std::pair<Target, ExpressionPtr>> assignments;
  Body body;
  Body else_body;
  std::unique_ptr<Macro> macro;
};

struct Template {
  std::string source;
  Body body;
  bool loops_over_content = false;  // some for statement walks over something called "content"
};

}  // namespace plumbline::jinja
