// Launch: the one place where kernels start.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "kernels/check.h"

namespace plumbline::cuda {

struct LaunchShape {
  dim3 grid, block;         // block: a multiple of 32 threads
  size_t shared_bytes = 0;  // dynamic
  cudaStream_t stream = nullptr;
};

// Enqueues kernel(args...). A launch that the runtime refuses is a bug and stops the process.
template <typename... Params, typename... Args>
void Launch(const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  constexpr size_t kSharedWithoutAsking = 48 << 10;
  if (shape.shared_bytes > kSharedWithoutAsking) {
    PL_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shape.shared_bytes)) == cudaSuccess);
  }
#ifdef __CUDACC__
  kernel<<<shape.grid, shape.block, shape.shared_bytes, shape.stream>>>(static_cast<Params>(args)...);
#else
  cuda_host::Launch(shape.grid, shape.block, shape.shared_bytes, shape.stream,
                    [=] { kernel(static_cast<Params>(args)...); });
#endif
  const cudaError_t error = cudaGetLastError();
  PL_CHECK_MSG(error == cudaSuccess, cudaGetErrorString(error));
}

}  // namespace plumbline::cuda
