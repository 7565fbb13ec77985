#include "kernels/backend.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

std::string WhyNoCuda(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no CUDA device can be used: ") + cudaGetErrorString(error);
  if (count == 0) return "this host has no CUDA device";
  if (device >= count)
    return "this host has " + std::to_string(count) + " CUDA devices, so there is no device " + std::to_string(device);
  return "";
}

Backend MakeCudaBackend(int device) {
  auto memory = std::make_unique<CudaDevice>(device);
  auto ops = std::make_unique<CudaOps>(*memory);
  return {std::move(memory), std::move(ops)};
}

}  // namespace plumbline
