// plumbline generate: one prompt, streamed to the terminal; figures on stderr.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/command.h"
#include "cli/model_session.h"
#include "coordinator/text/chat_template.h"
#include "proto/status.h"

namespace plumbline {
namespace {

struct GenerateFlags {
  ModelFlags model;
  std::string prompt, system;
  bool chat = false;
  int64_t max_tokens = 256;
  float temperature = 0;
  float top_p = 1;
  int32_t top_k = 0;
  uint64_t seed = 0;
};

absl::StatusOr<std::string> PromptText(const GenerateFlags& flags, const ModelText& text) {
  if (!flags.chat) return flags.prompt;
  if (!text.chat_template) return absl::InvalidArgumentError("--chat: the model has no chat template");
  ChatRequest chat;
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  if (!flags.system.empty()) messages.push_back({{"role", "system"}, {"content", flags.system}});
  messages.push_back({{"role", "user"}, {"content", flags.prompt}});
  chat.messages = &messages;
  chat.add_generation_prompt = true;
  return RenderChat(*text.chat_template, chat, text.tokens);
}

absl::Status RunGenerate(GenerateFlags flags) {
  if (flags.model.limits.max_sequences == 0) flags.model.limits.max_sequences = 1;
  PL_ASSIGN_OR_RETURN(auto session, ModelSession::Open(flags.model, TextNeed::kRequired));
  PL_ASSIGN_OR_RETURN(std::string prompt, PromptText(flags, *session->text()));
  GenerationRequest request;
  request.id = "generate";
  PL_ASSIGN_OR_RETURN(request.prompt, session->text()->tokenizer->Encode(prompt));
  request.max_tokens = flags.max_tokens;
  request.sampling = {.temperature = flags.temperature, .top_k = flags.top_k, .top_p = flags.top_p, .seed = flags.seed,
                      .logit_bias = {}};
  const size_t prompt_tokens = request.prompt.size();
  const absl::Time start = absl::Now();
  absl::Time first = absl::InfiniteFuture();
  PL_ASSIGN_OR_RETURN(GenerationOutput output, session->Run(std::move(request), [&](const GenerationOutput& piece) {
    if (!piece.tokens.empty() && first == absl::InfiniteFuture()) first = absl::Now();
    std::fputs(piece.text.c_str(), stdout);
    std::fflush(stdout);
  }));
  std::fputc('\n', stdout);
  const double decode_seconds = absl::ToDoubleSeconds(absl::Now() - first);
  const size_t generated = output.tokens.size();
  std::fprintf(stderr, "%zu prompt tokens, first token after %.0f ms; %zu tokens, %.1f tokens/s; %s\n", prompt_tokens,
               absl::ToDoubleMilliseconds(first - start), generated,
               generated > 1 ? static_cast<double>(generated - 1) / decode_seconds : 0.0, session->arithmetic().c_str());
  return absl::OkStatus();
}

}  // namespace

void AddGenerate(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = app.add_subcommand("generate", "continue one prompt, streamed to the terminal");
  AddModelSource(*command, flags->model);
  AddRunFlags(*command, flags->model);
  command->add_option("--prompt", flags->prompt, "the text to continue, or with --chat the question")->required();
  command->add_flag("--chat", flags->chat, "render the prompt with the model's chat template");
  command->add_option("--system", flags->system, "system message, with --chat");
  command->add_option("--max-new-tokens", flags->max_tokens, "tokens to generate at most")->check(CLI::PositiveNumber);
  command->add_option("--temperature", flags->temperature, "0 is greedy")->check(CLI::Range(0.0, 100.0));
  command->add_option("--top-p", flags->top_p, "1 is off")->check(CLI::Range(0.0, 1.0));
  command->add_option("--top-k", flags->top_k, "0 is off")->check(CLI::NonNegativeNumber);
  command->add_option("--seed", flags->seed, "of the draw");
  command->footer("Example: plumbline generate --model deploy/demo_model/model --chat --prompt 'What is Plumbline?'");
  command->callback([flags, &chosen] { chosen = [flags] { return RunGenerate(*flags); }; });
}

}  // namespace plumbline
