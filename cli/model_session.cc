#include "cli/model_session.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "cli/runner_factory.h"
#include "proto/status.h"

namespace plumbline {

absl::StatusOr<std::unique_ptr<ModelSession>> ModelSession::Open(const ModelFlags& flags, TextNeed text,
                                                                 const std::string& transport) {
  auto session = std::unique_ptr<ModelSession>(new ModelSession());
  PL_ASSIGN_OR_RETURN(session->model_, OpenNamedModel(flags));
  const NamedModel& model = session->model_;
  if (text == TextNeed::kRequired) {
    if (model.dir.empty()) return absl::InvalidArgumentError("this command needs --model DIR with a tokenizer.json");
    PL_ASSIGN_OR_RETURN(session->text_, LoadModelText(model.dir));
  }
  PL_ASSIGN_OR_RETURN(StartedRunner started, StartRunner(flags, model, transport));
  session->arithmetic_ = started.arithmetic;
  session->runner_ = std::move(started.runner);
  session->engine_ = Engine::Create({.max_running_sequences = started.limits.max_sequences,
                                     .max_context_tokens = std::min(model.config.max_positions, started.limits.max_tokens),
                                     .vocab_size = model.config.vocab,
                                     .eos_token_ids = model.config.eos_token_ids,
                                     .prefix_cache = false},
                                    session->runner_.get(), session->text_ ? session->text_->tokenizer.get() : nullptr);
  return session;
}

absl::StatusOr<GenerationOutput> ModelSession::Run(GenerationRequest request,
                                                   const std::function<void(const GenerationOutput&)>& on_output) {
  absl::Notification finished;
  GenerationOutput all;
  auto sink = [&](GenerationOutput output) {
    if (on_output) on_output(output);
    all.text += output.text;
    all.logits += output.logits;
    all.tokens.insert(all.tokens.end(), output.tokens.begin(), output.tokens.end());
    all.logprobs.insert(all.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
    all.prompt_logprobs.insert(all.prompt_logprobs.end(), output.prompt_logprobs.begin(), output.prompt_logprobs.end());
    all.status = output.status;
    all.finish = output.finish;
    if (output.finish != FinishReason::kNone) finished.Notify();
  };
  PL_RETURN_IF_ERROR(engine_->Submit(std::move(request), sink).status());
  finished.WaitForNotification();
  if (!all.status.ok()) return all.status;
  return all;
}

}  // namespace plumbline
