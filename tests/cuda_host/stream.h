// Work on a stream: done at once, or kept in the graph that is being captured.
#pragma once

#include <functional>

#include "tests/cuda_host/cuda_runtime.h"

namespace cuda_host {

// Counts the call.
void Enqueue(const char* function, cudaStream_t stream, std::function<void()> work);

}  // namespace cuda_host
