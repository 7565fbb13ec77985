// FlushSubnormals: while one lives, this thread's results and operands below 2^-126 count as zero. Decays and softmax
// weights get that small all the time; arithmetic on subnormals would trap into microcode, a hundred times slower.
#pragma once

#include <xmmintrin.h>

namespace plumbline {
namespace {

class FlushSubnormals {
 public:
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x40;
  const unsigned saved_;
};

}  // namespace
}  // namespace plumbline
