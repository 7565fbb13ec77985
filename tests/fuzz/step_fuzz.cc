#include "kernels/check.h"
#include "parallel/step_codec.h"
#include "tests/fuzz/targets.h"

namespace plumbline {

// What is taken for a step is one: its own encoding is taken again, and for the same.
void FuzzStep(std::string_view message) {
  if (const auto plan = DecodeStepPlan(message); plan.ok()) {
    const std::string bytes = EncodeStepPlan(*plan);
    const auto again = DecodeStepPlan(bytes);
    PL_CHECK(again.ok() && EncodeStepPlan(*again) == bytes);
  }
  if (const auto result = DecodeStepResult(message); result.ok()) {
    const std::string bytes = EncodeStepResult(*result);
    const auto again = DecodeStepResult(bytes);
    PL_CHECK(again.ok() && EncodeStepResult(*again) == bytes);
  }
}

}  // namespace plumbline
