#include "coordinator/text/jinja/parser.h"

#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/expression_parser.h"
#include "coordinator/text/jinja/lexer.h"
#include "proto/status.h"

namespace plumbline::jinja {
namespace {

using Kind = Statement::Kind;
using StatementPtr = std::unique_ptr<Statement>;

constexpr size_t kMaxSourceBytes = 4 << 20;
constexpr int kMaxNesting = 100;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : in_(std::move(tokens)) {}

  absl::StatusOr<std::shared_ptr<const Template>> Run(const std::string& source) {
    auto result = std::make_shared<Template>();
    result->body = ParseBody({});
    if (!in_.failed() && !in_.Is(Token::Kind::kEnd)) in_.Fail("unexpected end of a block");
    if (in_.failed()) return in_.status();
    result->source = source;
    result->loops_over_content = loops_over_content_;
    return std::shared_ptr<const Template>(std::move(result));
  }

 private:
  StatementPtr Make(Kind kind) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = in_.current().line;
    return statement;
  }

  // Statements up to a tag whose name is one of `ends`, which is left current (behind its "{%"), or
  // up to the end.
  Body ParseBody(std::initializer_list<std::string_view> ends) {
    Body body;
    if (++nesting_ > kMaxNesting) in_.Fail("blocks are nested too deep");
    int begin_line = in_.current().line;
    while (!in_.failed() && !in_.Is(Token::Kind::kEnd)) {
      if (in_.Is(Token::Kind::kText)) {
        StatementPtr text = Make(Kind::kText);
        text->text = in_.current().text;
        in_.Next();
        body.push_back(std::move(text));
      } else if (in_.Is(Token::Kind::kOutputBegin)) {
        StatementPtr output = Make(Kind::kOutput);
        in_.Next();
        output->expression = in_.ParseTuple(ExpressionParser::Condition::kAllowed);
        if (!in_.Is(Token::Kind::kOutputEnd)) in_.Fail("expected '}}'");
        in_.Next();
        body.push_back(std::move(output));
      } else {
        in_.Next();  // "{%"
        for (std::string_view end : ends) {
          if (in_.IsName(end)) {
            --nesting_;
            return body;
          }
        }
        if (StatementPtr statement = ParseStatement()) body.push_back(std::move(statement));
      }
    }
    if (ends.size() != 0 && !in_.failed()) {
      in_.Fail(absl::StrCat("the block of line ", begin_line, " has no '",
                            std::string(*(ends.end() - 1)), "'"));
    }
    --nesting_;
    return body;
  }

  void ExpectBlockEnd() {
    if (!in_.Is(Token::Kind::kBlockEnd)) in_.Fail("expected '%}'");
    in_.Next();
  }

  Body ParseBodyUntil(std::string_view end) {
    Body body = ParseBody({end});
    in_.ExpectName(end);
    ExpectBlockEnd();
    return body;
  }

  StatementPtr ParseStatement() {
    if (!in_.Is(Token::Kind::kName)) {
      in_.Fail("expected the name of a tag");
      return nullptr;
    }
    std::string tag = in_.current().text;
    if (tag == "for") return ParseFor();
    if (tag == "if") return ParseIf();
    if (tag == "set") return ParseSet();
    if (tag == "macro") return ParseMacro();
    if (tag == "call") return ParseCallBlock();
    if (tag == "filter") return ParseFilterBlock();
    if (tag == "with") return ParseWith();
    if (tag == "generation") {
      StatementPtr statement = Make(Kind::kScope);
      in_.Next();
      ExpectBlockEnd();
      statement->body = ParseBodyUntil("endgeneration");
      return statement;
    }
    if (tag == "break" || tag == "continue") {
      StatementPtr statement = Make(tag == "break" ? Kind::kBreak : Kind::kContinue);
      if (num_loops_ == 0) in_.Fail(absl::StrCat("'", tag, "' outside of a loop"));
      in_.Next();
      ExpectBlockEnd();
      return statement;
    }
    in_.Fail(absl::StrCat("unknown tag '", tag, "'"));
    return nullptr;
  }

  Target ParseTarget() {
    Target target;
    bool parenthesized = in_.SkipOperator("(");
    target.names.push_back(in_.ReadName());
    if (in_.SkipOperator(".")) {
      target.attribute = in_.ReadName();
      return target;
    }
    while (in_.SkipOperator(",")) {
      target.unpack = true;
      if (!in_.Is(Token::Kind::kName) || in_.IsName("in")) break;
      target.names.push_back(in_.ReadName());
    }
    if (parenthesized) in_.ExpectOperator(")");
    return target;
  }

  StatementPtr ParseFor() {
    StatementPtr statement = Make(Kind::kFor);
    in_.Next();
    statement->target = ParseTarget();
    in_.ExpectName("in");
    statement->expression = in_.ParseTuple(ExpressionParser::Condition::kNotAllowed);
    if (statement->expression != nullptr &&
        statement->expression->kind != Expression::Kind::kConstant) {
      NoteLoopOver(*statement->expression);
    }
    if (in_.SkipName("if")) statement->condition = in_.ParseExpression();
    if (in_.IsName("recursive")) in_.Fail("recursive loops are not supported");
    ExpectBlockEnd();
    ++num_loops_;
    statement->body = ParseBody({"else", "endfor"});
    --num_loops_;
    if (in_.SkipName("else")) {
      ExpectBlockEnd();
      statement->else_body = ParseBody({"endfor"});
    }
    in_.ExpectName("endfor");
    ExpectBlockEnd();
    return statement;
  }

  void NoteLoopOver(const Expression& walked) {
    // "content | selectattr(...)" walks over the content too.
    const Expression* inner = &walked;
    while (inner->kind == Expression::Kind::kFilter && !inner->children.empty() &&
           inner->children[0] != nullptr) {
      inner = inner->children[0].get();
    }
    const Expression& expression = *inner;
    bool by_name =
        expression.name == "content" && (expression.kind == Expression::Kind::kName ||
                                         expression.kind == Expression::Kind::kAttribute);
    bool by_item = expression.kind == Expression::Kind::kItem && expression.children.size() == 2 &&
                   expression.children[1]->constant.is_string() &&
                   expression.children[1]->constant.string() == "content";
    loops_over_content_ |= by_name || by_item;
  }

  StatementPtr ParseIf() {
    StatementPtr statement = Make(Kind::kIf);
    while (!in_.failed()) {
      in_.Next();  // "if" or "elif"
      Statement::Branch branch;
      branch.condition = in_.ParseTuple(ExpressionParser::Condition::kNotAllowed);
      ExpectBlockEnd();
      branch.body = ParseBody({"elif", "else", "endif"});
      statement->branches.push_back(std::move(branch));
      if (!in_.IsName("elif")) break;
    }
    if (in_.SkipName("else")) {
      ExpectBlockEnd();
      statement->else_body = ParseBody({"endif"});
    }
    in_.ExpectName("endif");
    ExpectBlockEnd();
    return statement;
  }

  StatementPtr ParseSet() {
    StatementPtr statement = Make(Kind::kSet);
    in_.Next();
    statement->target = ParseTarget();
    if (in_.SkipOperator("=")) {
      statement->expression = in_.ParseTuple(ExpressionParser::Condition::kAllowed);
      ExpectBlockEnd();
      return statement;
    }
    statement->kind = Kind::kSetBlock;
    statement->expression = ParseFilterChain();
    ExpectBlockEnd();
    statement->body = ParseBodyUntil("endset");
    return statement;
  }

  // "| name(...) | name ..."; null when there is none.
  ExpressionPtr ParseFilterChain() {
    ExpressionPtr chain;
    while (in_.SkipOperator("|")) chain = in_.ParseFilter(std::move(chain));
    return chain;
  }

  void ParseParameters(Macro& macro) {
    in_.ExpectOperator("(");
    while (!in_.IsOperator(")") && !in_.failed()) {
      Parameter parameter;
      parameter.name = in_.ReadName();
      if (in_.SkipOperator("=")) {
        parameter.default_value = in_.ParseExpression();
      } else if (!macro.parameters.empty() && macro.parameters.back().default_value != nullptr) {
        in_.Fail("parameter without default after one with default");
      }
      macro.parameters.push_back(std::move(parameter));
      if (!in_.SkipOperator(",")) break;
    }
    in_.ExpectOperator(")");
  }

  // Reads the body up to `end` and notes whether it speaks of varargs and kwargs.
  void ParseMacroBody(Macro& macro, std::string_view end) {
    ExpressionParser::SpecialNames outer = in_.special_names();
    int outer_loops = num_loops_;
    in_.special_names() = {};
    num_loops_ = 0;
    macro.body = ParseBodyUntil(end);
    macro.takes_varargs = in_.special_names().varargs;
    macro.takes_kwargs = in_.special_names().kwargs;
    in_.special_names() = outer;
    num_loops_ = outer_loops;
  }

  StatementPtr ParseMacro() {
    StatementPtr statement = Make(Kind::kMacro);
    statement->macro = std::make_unique<Macro>();
    in_.Next();
    statement->macro->name = in_.ReadName();
    ParseParameters(*statement->macro);
    ExpectBlockEnd();
    ParseMacroBody(*statement->macro, "endmacro");
    return statement;
  }

  StatementPtr ParseCallBlock() {
    StatementPtr statement = Make(Kind::kCallBlock);
    statement->macro = std::make_unique<Macro>();
    statement->macro->name = "caller";
    in_.Next();
    if (in_.IsOperator("(")) ParseParameters(*statement->macro);
    statement->expression = in_.ParseExpression();
    if (!in_.failed() && statement->expression->kind != Expression::Kind::kCall)
      in_.Fail("expected a call");
    ExpectBlockEnd();
    ParseMacroBody(*statement->macro, "endcall");
    return statement;
  }

  StatementPtr ParseFilterBlock() {
    StatementPtr statement = Make(Kind::kFilterBlock);
    in_.Next();
    statement->expression = in_.ParseFilter(nullptr);
    while (in_.SkipOperator("|"))
      statement->expression = in_.ParseFilter(std::move(statement->expression));
    ExpectBlockEnd();
    statement->body = ParseBodyUntil("endfilter");
    return statement;
  }

  StatementPtr ParseWith() {
    StatementPtr statement = Make(Kind::kScope);
    in_.Next();
    while (!in_.Is(Token::Kind::kBlockEnd) && !in_.failed()) {
      if (!statement->assignments.empty()) in_.ExpectOperator(",");
      Target target;
      target.names.push_back(in_.ReadName());
      in_.ExpectOperator("=");
      statement->assignments.emplace_back(std::move(target), in_.ParseExpression());
    }
    ExpectBlockEnd();
    statement->body = ParseBodyUntil("endwith");
    return statement;
  }

  ExpressionParser in_;
  int nesting_ = 0;
  int num_loops_ = 0;
  bool loops_over_content_ = false;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Template>> ParseTemplate(const std::string& source) {
  if (source.size() > kMaxSourceBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "chat template has ", source.size(), " bytes, more than the limit of ", kMaxSourceBytes));
  }
  PL_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run(source);
}

}  // namespace plumbline::jinja
