// CHECK: stops the process on a bug of ours, in every build type. For anything a file, a peer or a user can
// cause, return a Status instead.
#pragma once

namespace plumbline {

// Prints "file:line: CHECK failed: expression (detail)" and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expression,
                              const char* detail = nullptr);

}  // namespace plumbline

#define PL_CHECK(condition) \
  ((condition) ? (void)0 : ::plumbline::CheckFailed(__FILE__, __LINE__, #condition))
#define PL_CHECK_MSG(condition, detail) \
  ((condition) ? (void)0 : ::plumbline::CheckFailed(__FILE__, __LINE__, #condition, detail))
