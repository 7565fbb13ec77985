// plumbline score: log-probabilities of given texts, one JSON line out for each one in.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/model_session.h"
#include "proto/status.h"

namespace plumbline {
namespace {

struct ScoreFlags {
  ModelFlags model;
  std::string input;
  int32_t top = 0;
};

absl::StatusOr<std::vector<int32_t>> TokensOf(const std::string& line, const Tokenizer& tokenizer) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  if (json.contains("text") && json["text"].is_string()) return tokenizer.Encode(json["text"].get<std::string>());
  if (!json.contains("tokens") || !json["tokens"].is_array()) {
    return absl::InvalidArgumentError("needs \"text\" (a string) or \"tokens\" (token ids)");
  }
  std::vector<int32_t> tokens;
  for (const nlohmann::json& id : json["tokens"]) {
    if (!id.is_number_integer()) return absl::InvalidArgumentError("\"tokens\" must be integers");
    tokens.push_back(id.get<int32_t>());
  }
  return tokens;
}

nlohmann::ordered_json ScoreJson(const std::vector<int32_t>& tokens, const GenerationOutput& output, int32_t top) {
  nlohmann::ordered_json json = {{"tokens", tokens}};
  double sum = 0;
  nlohmann::ordered_json logprobs = nlohmann::ordered_json::array({nullptr});
  nlohmann::ordered_json alternatives = nlohmann::ordered_json::array({nullptr});
  for (const TokenLogprob& token : output.prompt_logprobs) {
    sum += token.logprob;
    logprobs.push_back(token.logprob);
    alternatives.push_back({{"tokens", token.top_tokens}, {"logprobs", token.top_logprobs}});
  }
  json["logprobs"] = std::move(logprobs);
  if (top > 0) json["top"] = std::move(alternatives);
  json["sum"] = sum;
  return json;
}

absl::Status RunScore(ScoreFlags flags) {
  PL_ASSIGN_OR_RETURN(auto session, ModelSession::Open(flags.model, TextNeed::kRequired));
  std::ifstream file(flags.input);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", flags.input));
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    absl::StatusOr<std::vector<int32_t>> tokens = TokensOf(line, *session->text()->tokenizer);
    absl::Status status = tokens.status();
    if (status.ok()) {
      GenerationRequest request;
      request.id = absl::StrCat("line ", number);
      request.prompt = *tokens;
      request.num_prompt_logprobs = flags.top;
      absl::StatusOr<GenerationOutput> output = session->Run(std::move(request));
      if (output.ok()) std::cout << ScoreJson(*tokens, *output, flags.top).dump() << "\n";
      status = output.status();
    }
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat(flags.input, ":", number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void AddScore(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<ScoreFlags>();
  CLI::App* command = app.add_subcommand("score", "log-probabilities of given texts");
  AddModelSource(*command, flags->model);
  AddRunFlags(*command, flags->model);
  command->add_option("--input", flags->input, "JSON lines, each {\"text\": ...} or {\"tokens\": [...]}")->required();
  command->add_option("--top", flags->top, "alternatives per position")->check(CLI::Range(0, 1000));
  command->footer("Example: plumbline score --model deploy/demo_model/model --input texts.jsonl");
  command->callback([flags, &chosen] { chosen = [flags] { return RunScore(*flags); }; });
}

}  // namespace plumbline
