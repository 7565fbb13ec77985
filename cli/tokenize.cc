// plumbline tokenize: rendered text and ids of each line, as the server would see them.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "coordinator/text/model_text.h"
#include "proto/status.h"

namespace plumbline {
namespace {

struct TokenizeFlags {
  std::string model, chat_template, input;
};

absl::Status RunTokenize(const TokenizeFlags& flags) {
  PL_ASSIGN_OR_RETURN(auto text, LoadModelText(flags.model, flags.chat_template));
  std::ifstream file(flags.input);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", flags.input));
  std::string line;
  while (std::getline(file, line)) {
    if (!line.empty()) std::cout << TokenizeLine(*text, line) << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddTokenize(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* command = app.add_subcommand("tokenize", "rendered text and token ids of texts or chats");
  command->add_option("--model", flags->model, "directory with a tokenizer.json")->required();
  command->add_option("--chat-template", flags->chat_template, "Jinja file to use instead of the model's own");
  command->add_option("--input", flags->input, "JSON lines, each {\"text\"} or {\"messages\", \"tools\", ...}")->required();
  command->footer("Example: plumbline tokenize --model deploy/demo_model/model --input lines.jsonl");
  command->callback([flags, &chosen] { chosen = [flags] { return RunTokenize(*flags); }; });
}

}  // namespace plumbline
