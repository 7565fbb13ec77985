// The entry that libFuzzer calls; FUZZ_TARGET is a function of targets.h.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  plumbline::FUZZ_TARGET({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
