// ModelSession: an engine over ranks of this host, for commands that run once: generate, logits, score.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/model_flags.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/step_runner.h"
#include "coordinator/text/model_text.h"

namespace plumbline {

enum class TextNeed { kNone, kRequired };

class ModelSession {
 public:
  // Loads the model as the flags say. transport: as StartRunner's.
  static absl::StatusOr<std::unique_ptr<ModelSession>> Open(const ModelFlags& flags, TextNeed text,
                                                            const std::string& transport = "threads");

  const NamedModel& model() const { return model_; }
  const ModelText* text() const { return text_.get(); }
  const std::string& arithmetic() const { return arithmetic_; }
  Engine& engine() { return *engine_; }

  // Submits one request and waits for its end. on_output may be empty; the returned output holds everything together.
  absl::StatusOr<GenerationOutput> Run(GenerationRequest request,
                                       const std::function<void(const GenerationOutput&)>& on_output = {});

 private:
  ModelSession() = default;

  NamedModel model_;
  std::string arithmetic_;
  std::unique_ptr<ModelText> text_;
  std::unique_ptr<StepRunner> runner_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace plumbline
