// Parser: tokens -> syntax tree. Jinja2's grammar without inheritance, includes and recursive
// loops.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/ast.h"

namespace plumbline::jinja {

// INVALID_ARGUMENT with line and reason.
absl::StatusOr<std::shared_ptr<const Template>> ParseTemplate(const std::string& source);

}  // namespace plumbline::jinja
