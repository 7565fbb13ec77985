// RequestBuilder: from what a client asked for to what the engine runs. The one place, shared by
// HTTP and gRPC, that turns text and conversations into token ids, checks ranges and applies the
// context's limit. Errors are INVALID_ARGUMENT naming the field as OpenAI calls it, NOT_FOUND for
// another model. Immutable; every method may be called from any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/api/served_model.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/access_control.h"
#include "coordinator/text/chat_template.h"

namespace plumbline {

RequestOwner OwnerOf(const Caller& caller);

inline constexpr int kMaxChoices = 128;
inline constexpr int kMaxStops = 16;
inline constexpr int kMaxStopBytes = 1024;
inline constexpr int kMaxLogitBiases = 1024;
inline constexpr int kMaxTopLogprobs = 20;

struct InfillPrompt {
  std::string_view prefix;
  std::string_view suffix;
};

class RequestBuilder {
 public:
  // The model outlives this.
  explicit RequestBuilder(const ServedModel& model);

  // Empty stands for the served model.
  absl::Status CheckModel(const std::string& name) const;

  // `field` is where the text came from.
  absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text, const std::string& field,
                                                  const EncodeOptions& options) const;
  absl::StatusOr<std::vector<int32_t>> EncodeChat(const ChatRequest& chat,
                                                  const EncodeOptions& options) const;
  // Fill in the middle, with the markers of the model's vocabulary; INVALID_ARGUMENT when it has
  // none.
  absl::StatusOr<std::vector<int32_t>> EncodeInfill(const InfillPrompt& prompt) const;
  // Every id is one of the model's.
  absl::Status CheckTokens(std::span<const int32_t> tokens, const std::string& field) const;

  // Ranges of everything but prompt and max_tokens.
  absl::Status CheckGeneration(const GenerationRequest& request) const;
  absl::Status CheckChoices(int64_t n) const;
  // How many tokens to generate after a prompt: what was asked for if the context leaves so many,
  // or all it leaves.
  absl::StatusOr<int64_t> FitMaxTokens(int64_t prompt_tokens,
                                       std::optional<int64_t> max_tokens) const;

  const ServedModel& model() const { return model_; }

 private:
  absl::Status CheckSampling(const SamplingParams& sampling) const;

  const ServedModel& model_;
};

// Unpredictable; for requests that name no seed.
uint64_t RandomSeed();

}  // namespace plumbline
