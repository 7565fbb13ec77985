// What tells one build of this program from another: coordinator and workers must be the same.
#pragma once

#include <string>

namespace plumbline {

// The identifier that the linker wrote into the executable, in hex; "unknown" when there is none.
std::string BuildId();

}  // namespace plumbline
