// StepPlan and StepResult as bytes (messages of proto/cluster.proto). Parsing bounds every size and names what is wrong.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "parallel/step_plan.h"

namespace plumbline {

std::string EncodeStepPlan(const StepPlan& plan);
absl::StatusOr<StepPlan> DecodeStepPlan(std::string_view bytes);
std::string EncodeStepResult(const StepResult& result);
absl::StatusOr<StepResult> DecodeStepResult(std::string_view bytes);

}  // namespace plumbline
