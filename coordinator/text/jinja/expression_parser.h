// ExpressionParser: the part of the parser that reads expressions. Errors stick: after the first
// one every method returns at once with something harmless, and `status()` says what it was.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/lexer.h"

namespace plumbline::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const absl::Status& status() const { return status_; }
  bool failed() const { return !status_.ok(); }
  void Fail(std::string_view message);

  const Token& current() const { return tokens_[pos_]; }
  const Token& Look() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  void Next();
  bool Is(Token::Kind kind) const { return current().kind == kind; }
  bool IsName(std::string_view name) const;
  bool IsOperator(std::string_view op) const;
  bool SkipName(std::string_view name);
  bool SkipOperator(std::string_view op);
  void ExpectOperator(std::string_view op);
  void ExpectName(std::string_view name);
  std::string ReadName();

  ExpressionPtr ParseExpression();        // with "a if b else c"
  ExpressionPtr ParseWithoutCondition();  // "or" and what binds tighter
  // Commas make a tuple. An empty one is allowed in parentheses only.
  enum class Condition { kAllowed, kNotAllowed };
  ExpressionPtr ParseTuple(Condition condition);
  // What may follow a primary: attributes, items, calls; then filters and tests.
  ExpressionPtr ParsePostfix(ExpressionPtr node);
  ExpressionPtr ParseFilters(ExpressionPtr node);
  ExpressionPtr ParseFilter(ExpressionPtr node);  // at the filter's name
  void ParseArguments(ArgumentList& arguments);   // at "("

  // Every name that was read since the last call.
  struct SpecialNames {
    bool varargs = false;
    bool kwargs = false;
  };
  SpecialNames& special_names() { return special_names_; }

 private:
  ExpressionPtr Make(Expression::Kind kind, int line, ExpressionPtr a = nullptr,
                     ExpressionPtr b = nullptr, ExpressionPtr c = nullptr,
                     ExpressionPtr d = nullptr);
  void Adopt(Expression& parent, ExpressionPtr child);
  ExpressionPtr ParseAnd();
  ExpressionPtr ParseNot();
  ExpressionPtr ParseCompare();
  ExpressionPtr ParseSum();
  ExpressionPtr ParseConcat();
  ExpressionPtr ParseProduct();
  ExpressionPtr ParsePower();
  ExpressionPtr ParseUnary(bool with_filter);
  ExpressionPtr ParsePrimary();
  ExpressionPtr ParseNumber();
  ExpressionPtr ParseParenthesized();
  ExpressionPtr ParseList();
  ExpressionPtr ParseDict();
  ExpressionPtr ParseSubscript(ExpressionPtr node);
  ExpressionPtr ParseTest(ExpressionPtr node);
  ExpressionPtr ParseLeftAssociative(ExpressionPtr (ExpressionParser::*operand)(),
                                     std::initializer_list<std::string_view> operators);

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  absl::Status status_;
  int nesting_ = 0;
  SpecialNames special_names_;
};

}  // namespace plumbline::jinja
