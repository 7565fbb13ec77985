// Interpreter: runs a parsed template over variables.
#pragma once

#include <ctime>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/render_limits.h"

namespace plumbline::jinja {

// `variables` are a dict's entries. INVALID_ARGUMENT with line and reason, RESOURCE_EXHAUSTED at a
// limit.
absl::StatusOr<std::string> Render(const Template& parsed, const Value& variables, std::time_t now,
                                   const RenderLimits& limits);

}  // namespace plumbline::jinja
