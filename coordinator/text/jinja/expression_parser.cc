#include "coordinator/text/jinja/expression_parser.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace plumbline::jinja {
namespace {

using Kind = Expression::Kind;

// The interpreter and the destructors recurse as deep as an expression nests.
constexpr int kMaxDepth = 300;
constexpr int kMaxNesting = 100;

}  // namespace

void ExpressionParser::Fail(std::string_view message) {
  if (status_.ok()) status_ = TemplateError(current().line, message);
  pos_ = tokens_.size() - 1;  // the end: every loop stops
}

void ExpressionParser::Next() {
  if (pos_ + 1 < tokens_.size()) ++pos_;
}

bool ExpressionParser::IsName(std::string_view name) const {
  return Is(Token::Kind::kName) && current().text == name;
}

bool ExpressionParser::IsOperator(std::string_view op) const {
  return Is(Token::Kind::kOperator) && current().text == op;
}

bool ExpressionParser::SkipName(std::string_view name) {
  if (!IsName(name)) return false;
  Next();
  return true;
}

bool ExpressionParser::SkipOperator(std::string_view op) {
  if (!IsOperator(op)) return false;
  Next();
  return true;
}

void ExpressionParser::ExpectOperator(std::string_view op) {
  if (!SkipOperator(op)) Fail(absl::StrCat("expected '", std::string(op), "'"));
}

void ExpressionParser::ExpectName(std::string_view name) {
  if (!SkipName(name)) Fail(absl::StrCat("expected '", std::string(name), "'"));
}

std::string ExpressionParser::ReadName() {
  if (!Is(Token::Kind::kName)) {
    Fail("expected a name");
    return "";
  }
  std::string name = current().text;
  Next();
  return name;
}

void ExpressionParser::Adopt(Expression& parent, ExpressionPtr child) {
  if (child != nullptr) parent.depth = std::max(parent.depth, child->depth + 1);
  parent.children.push_back(std::move(child));
  if (parent.depth > kMaxDepth) Fail("expression is nested too deep");
}

ExpressionPtr ExpressionParser::Make(Kind kind, int line, ExpressionPtr a, ExpressionPtr b,
                                     ExpressionPtr c, ExpressionPtr d) {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  bool is_slice = kind == Kind::kSlice;
  if (a != nullptr) Adopt(*node, std::move(a));
  if (b != nullptr || is_slice) Adopt(*node, std::move(b));
  if (c != nullptr || is_slice) Adopt(*node, std::move(c));
  if (d != nullptr || is_slice) Adopt(*node, std::move(d));
  return node;
}

ExpressionPtr ExpressionParser::ParseExpression() {
  if (++nesting_ > kMaxNesting) Fail("expression is nested too deep");
  ExpressionPtr node = ParseWithoutCondition();
  while (IsName("if") && !failed()) {
    int line = current().line;
    Next();
    ExpressionPtr condition = ParseWithoutCondition();
    ExpressionPtr otherwise;
    if (SkipName("else")) otherwise = ParseExpression();
    node =
        Make(Kind::kConditional, line, std::move(condition), std::move(node), std::move(otherwise));
  }
  --nesting_;
  return node;
}

ExpressionPtr ExpressionParser::ParseWithoutCondition() {
  ExpressionPtr node = ParseAnd();
  while (IsName("or")) {
    int line = current().line;
    Next();
    node = Make(Kind::kOr, line, std::move(node), ParseAnd());
  }
  return node;
}

ExpressionPtr ExpressionParser::ParseAnd() {
  ExpressionPtr node = ParseNot();
  while (IsName("and")) {
    int line = current().line;
    Next();
    node = Make(Kind::kAnd, line, std::move(node), ParseNot());
  }
  return node;
}

ExpressionPtr ExpressionParser::ParseNot() {
  int num_not = 0;
  int line = current().line;
  while (SkipName("not")) ++num_not;
  ExpressionPtr node = ParseCompare();
  for (; num_not > 0 && !failed(); --num_not) node = Make(Kind::kNot, line, std::move(node));
  return node;
}

ExpressionPtr ExpressionParser::ParseCompare() {
  ExpressionPtr first = ParseSum();
  ExpressionPtr compare;
  while (!failed()) {
    std::string op;
    int line = current().line;
    for (std::string_view candidate : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (op.empty() && SkipOperator(candidate)) op = candidate;
    }
    if (op.empty() && SkipName("in")) op = "in";
    if (op.empty() && IsName("not") && Look().kind == Token::Kind::kName && Look().text == "in") {
      Next();
      Next();
      op = "not in";
    }
    if (op.empty()) break;
    if (compare == nullptr) compare = Make(Kind::kCompare, line, std::move(first));
    compare->operators.push_back(op);
    Adopt(*compare, ParseSum());
  }
  return compare != nullptr ? std::move(compare) : std::move(first);
}

ExpressionPtr ExpressionParser::ParseLeftAssociative(
    ExpressionPtr (ExpressionParser::*operand)(),
    std::initializer_list<std::string_view> operators) {
  ExpressionPtr node = (this->*operand)();
  while (Is(Token::Kind::kOperator) &&
         std::find(operators.begin(), operators.end(), current().text) != operators.end()) {
    int line = current().line;
    std::string op = current().text;
    Next();
    ExpressionPtr right = (this->*operand)();
    node = Make(Kind::kArithmetic, line, std::move(node), std::move(right));
    node->name = op;
  }
  return node;
}

ExpressionPtr ExpressionParser::ParseSum() {
  return ParseLeftAssociative(&ExpressionParser::ParseConcat, {"+", "-"});
}

ExpressionPtr ExpressionParser::ParseConcat() {
  ExpressionPtr first = ParseProduct();
  if (!IsOperator("~")) return first;
  ExpressionPtr node = Make(Kind::kConcat, current().line, std::move(first));
  while (SkipOperator("~")) Adopt(*node, ParseProduct());
  return node;
}

ExpressionPtr ExpressionParser::ParseProduct() {
  return ParseLeftAssociative(&ExpressionParser::ParsePower, {"*", "/", "//", "%"});
}

ExpressionPtr ExpressionParser::ParsePower() {
  ExpressionPtr node = ParseUnary(true);
  while (IsOperator("**")) {
    int line = current().line;
    Next();
    node = Make(Kind::kArithmetic, line, std::move(node), ParseUnary(true));
    node->name = "**";
  }
  return node;
}

ExpressionPtr ExpressionParser::ParseUnary(bool with_filter) {
  int line = current().line;
  ExpressionPtr node;
  if (IsOperator("-") || IsOperator("+")) {
    Kind kind = IsOperator("-") ? Kind::kNegate : Kind::kPositive;
    Next();
    if (++nesting_ > kMaxNesting) Fail("expression is nested too deep");
    node = Make(kind, line, ParseUnary(false));
    --nesting_;
  } else {
    node = ParsePrimary();
  }
  node = ParsePostfix(std::move(node));
  return with_filter ? ParseFilters(std::move(node)) : std::move(node);
}

ExpressionPtr ExpressionParser::ParsePrimary() {
  const Token token = current();
  auto constant = [&](Value value) {
    ExpressionPtr node = Make(Kind::kConstant, token.line);
    node->constant = std::move(value);
    return node;
  };
  switch (token.kind) {
    case Token::Kind::kName: {
      Next();
      if (token.text == "true" || token.text == "True") return constant(true);
      if (token.text == "false" || token.text == "False") return constant(false);
      if (token.text == "none" || token.text == "None") return constant(None());
      special_names_.varargs |= token.text == "varargs";
      special_names_.kwargs |= token.text == "kwargs";
      ExpressionPtr node = Make(Kind::kName, token.line);
      node->name = token.text;
      return node;
    }
    case Token::Kind::kString: {
      std::string text;
      while (Is(Token::Kind::kString)) {  // neighbours are one string
        text += current().text;
        Next();
      }
      return constant(Value(std::move(text)));
    }
    case Token::Kind::kInteger:
    case Token::Kind::kFloat:
      return ParseNumber();
    default:
      break;
  }
  if (IsOperator("(")) return ParseParenthesized();
  if (IsOperator("[")) return ParseList();
  if (IsOperator("{")) return ParseDict();
  Fail(token.kind == Token::Kind::kOperator ? absl::StrCat("unexpected '", token.text, "'")
                                            : std::string("expected an expression"));
  return constant(Value());
}

ExpressionPtr ExpressionParser::ParseNumber() {
  ExpressionPtr node = Make(Kind::kConstant, current().line);
  if (Is(Token::Kind::kInteger)) {
    int64_t number = 0;
    if (!absl::SimpleAtoi(current().text, &number)) Fail("integer is out of range");
    node->constant = number;
  } else {
    node->constant = std::strtod(current().text.c_str(), nullptr);
  }
  Next();
  return node;
}

ExpressionPtr ExpressionParser::ParseTuple(Condition condition) {
  auto parse = [&] {
    return condition == Condition::kAllowed ? ParseExpression() : ParseWithoutCondition();
  };
  int line = current().line;
  ExpressionPtr first = parse();
  if (!IsOperator(",")) return first;
  ExpressionPtr tuple = Make(Kind::kTuple, line, std::move(first));
  while (SkipOperator(",")) {
    bool at_end = Is(Token::Kind::kBlockEnd) || Is(Token::Kind::kOutputEnd) || IsOperator(")") ||
                  IsOperator("=") || IsName("if");
    if (at_end || failed()) break;
    Adopt(*tuple, parse());
  }
  return tuple;
}

ExpressionPtr ExpressionParser::ParseParenthesized() {
  int line = current().line;
  Next();
  if (SkipOperator(")")) return Make(Kind::kTuple, line);
  ExpressionPtr node = ParseTuple(Condition::kAllowed);
  ExpectOperator(")");
  return node;
}

ExpressionPtr ExpressionParser::ParseList() {
  ExpressionPtr node = Make(Kind::kList, current().line);
  Next();
  while (!IsOperator("]") && !failed()) {
    Adopt(*node, ParseExpression());
    if (!SkipOperator(",")) break;
  }
  ExpectOperator("]");
  return node;
}

ExpressionPtr ExpressionParser::ParseDict() {
  ExpressionPtr node = Make(Kind::kDict, current().line);
  Next();
  while (!IsOperator("}") && !failed()) {
    Adopt(*node, ParseExpression());
    ExpectOperator(":");
    Adopt(*node, ParseExpression());
    if (!SkipOperator(",")) break;
  }
  ExpectOperator("}");
  return node;
}

ExpressionPtr ExpressionParser::ParsePostfix(ExpressionPtr node) {
  while (!failed()) {
    int line = current().line;
    if (IsOperator(".") || IsOperator("[")) {
      node = ParseSubscript(std::move(node));
    } else if (IsOperator("(")) {
      node = Make(Kind::kCall, line, std::move(node));
      ParseArguments(node->arguments);
    } else {
      break;
    }
  }
  return node;
}

ExpressionPtr ExpressionParser::ParseSubscript(ExpressionPtr node) {
  int line = current().line;
  if (SkipOperator(".")) {
    if (Is(Token::Kind::kInteger)) {
      return Make(Kind::kItem, line, std::move(node), ParseNumber());
    }
    node = Make(Kind::kAttribute, line, std::move(node));
    node->name = ReadName();
    return node;
  }
  Next();
  ExpressionPtr parts[3];
  int num_colons = 0;
  while (!IsOperator("]") && !failed()) {
    if (SkipOperator(":")) {
      if (++num_colons > 2) Fail("unexpected ':'");
    } else {
      if (parts[num_colons] != nullptr) Fail("expected ']'");
      parts[num_colons] = ParseExpression();
    }
  }
  ExpectOperator("]");
  if (num_colons > 0) {
    return Make(Kind::kSlice, line, std::move(node), std::move(parts[0]), std::move(parts[1]),
                std::move(parts[2]));
  }
  if (parts[0] == nullptr) Fail("expected an index");
  return Make(Kind::kItem, line, std::move(node), std::move(parts[0]));
}

void ExpressionParser::ParseArguments(ArgumentList& arguments) {
  ExpectOperator("(");
  while (!IsOperator(")") && !failed()) {
    if (SkipOperator("**")) {
      arguments.double_star = ParseExpression();
    } else if (SkipOperator("*")) {
      arguments.star = ParseExpression();
    } else if (Is(Token::Kind::kName) && Look().kind == Token::Kind::kOperator &&
               Look().text == "=") {
      std::string name = ReadName();
      Next();
      arguments.named.emplace_back(std::move(name), ParseExpression());
    } else {
      if (!arguments.named.empty()) Fail("positional argument after a named one");
      arguments.positional.push_back(ParseExpression());
    }
    if (!SkipOperator(",")) break;
  }
  ExpectOperator(")");
}

ExpressionPtr ExpressionParser::ParseFilters(ExpressionPtr node) {
  while (!failed()) {
    int line = current().line;
    if (SkipOperator("|")) {
      node = ParseFilter(std::move(node));
    } else if (SkipName("is")) {
      node = ParseTest(std::move(node));
    } else if (IsOperator("(")) {  // calling what a filter gave
      node = Make(Kind::kCall, line, std::move(node));
      ParseArguments(node->arguments);
    } else {
      break;
    }
  }
  return node;
}

ExpressionPtr ExpressionParser::ParseFilter(ExpressionPtr node) {
  node = Make(Kind::kFilter, current().line, std::move(node));
  node->name = ReadName();
  if (IsOperator("(")) ParseArguments(node->arguments);
  return node;
}

ExpressionPtr ExpressionParser::ParseTest(ExpressionPtr node) {
  int line = current().line;
  bool negated = SkipName("not");
  node = Make(Kind::kTest, line, std::move(node));
  node->name = ReadName();
  bool argument_follows = false;
  switch (current().kind) {
    case Token::Kind::kName:
      argument_follows = !IsName("else") && !IsName("or") && !IsName("and") && !IsName("if");
      if (IsName("is")) Fail("tests cannot be chained with 'is'");
      break;
    case Token::Kind::kString:
    case Token::Kind::kInteger:
    case Token::Kind::kFloat:
      argument_follows = true;
      break;
    default:
      argument_follows = IsOperator("[") || IsOperator("{");
  }
  if (IsOperator("(")) {
    ParseArguments(node->arguments);
  } else if (argument_follows) {
    node->arguments.positional.push_back(ParsePostfix(ParsePrimary()));
  }
  return negated ? Make(Kind::kNot, line, std::move(node)) : std::move(node);
}

}  // namespace plumbline::jinja
