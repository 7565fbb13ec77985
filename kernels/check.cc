#include "kernels/check.h"

#include <cstdio>
#include <cstdlib>

namespace plumbline {

void CheckFailed(const char* file, int line, const char* expression, const char* detail) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s%s%s%s\n", file, line, expression,
               detail ? " (" : "", detail ? detail : "", detail ? ")" : "");
  std::abort();
}

}  // namespace plumbline
