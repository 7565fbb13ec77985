// Asking for memory ahead of its use.
#pragma once

#include <cstdint>

namespace plumbline {

// Any address may be asked for, also behind the end of an array.
inline void Fetch(const void* memory, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch(static_cast<const char*>(memory) + i);
}

// A line that is first fetched when it is written holds up the stores behind it. Processors without the instruction
// skip it.
inline void FetchForWriting(const void* line) { asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line))); }

inline void FetchForWriting(const void* memory, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; i += 64) FetchForWriting(static_cast<const char*>(memory) + i);
}

}  // namespace plumbline
