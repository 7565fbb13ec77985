// Between the messages of the Inference service and what the engine runs. Internal to the gRPC
// service.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/api/request_builder.h"
#include "coordinator/engine/engine.h"

namespace plumbline {

namespace v1 {
class GenerateRequest;
class ScoreRequest;
class TokenizeRequest;
class TokenInfo;
}  // namespace v1

// One request per choice, checked; without deadlines.
absl::StatusOr<std::vector<GenerationRequest>> BuildGenerate(const RequestBuilder& builder,
                                                             const v1::GenerateRequest& from);
absl::StatusOr<GenerationRequest> BuildScore(const RequestBuilder& builder,
                                             const v1::ScoreRequest& from);
absl::StatusOr<std::vector<int32_t>> EncodeTokenize(const RequestBuilder& builder,
                                                    const v1::TokenizeRequest& from);
void Fill(const TokenLogprob& from, v1::TokenInfo& to);

}  // namespace plumbline
