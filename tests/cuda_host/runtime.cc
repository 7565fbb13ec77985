// The runtime's functions (cuda_runtime.h): device memory is host memory.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "tests/cuda_host/cuda_runtime.h"
#include "tests/cuda_host/stream.h"

struct CudaHostGraph {
  std::vector<std::function<void()>> work;
};
struct CudaHostStream {
  CudaHostGraph* captured = nullptr;  // being captured
};
struct CudaHostEvent {};

namespace cuda_host {
namespace {

std::mutex mutex;
std::map<std::string, int64_t> calls;  // by function

void Count(const char* function) {
  std::lock_guard lock(mutex);
  ++calls[function];
}

}  // namespace

int64_t CallsOf(const std::string& function) {
  std::lock_guard lock(mutex);
  const auto found = calls.find(function);
  return found == calls.end() ? 0 : found->second;
}

void Enqueue(const char* function, cudaStream_t stream, std::function<void()> work) {
  Count(function);
  if (stream != nullptr && stream->captured != nullptr) {
    stream->captured->work.push_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace cuda_host

using cuda_host::Count;
using cuda_host::Enqueue;

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the host's CUDA";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "host C++");
  properties->totalGlobalMem = size_t{8} << 30;
  properties->multiProcessorCount = 4;
  properties->major = 8;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t num_bytes) {
  Count("cudaMalloc");
  *data = std::aligned_alloc(256, (num_bytes + 255) / 256 * 256);
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*data, 0xff, num_bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  Count("cudaFree");
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, size_t num_bytes) {
  Count("cudaMallocHost");
  *data = std::aligned_alloc(256, (num_bytes + 255) / 256 * 256);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const char* names[] = {"cudaMemcpyAsync", "cudaMemcpyAsync up", "cudaMemcpyAsync down", "cudaMemcpyAsync inside"};
  Enqueue(names[kind], stream, [=] {
    if (num_bytes > 0) std::memmove(to, from, num_bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind, cudaStream_t stream) {
  Enqueue("cudaMemcpy2DAsync", stream, [=] {
    for (size_t i = 0; i < height; ++i) {
      std::memmove(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
    }
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t num_bytes, cudaStream_t stream) {
  Enqueue("cudaMemsetAsync", stream, [=] {
    if (num_bytes > 0) std::memset(data, value, num_bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CudaHostStream;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  Count("cudaStreamSynchronize");
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CudaHostEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  Count("cudaEventSynchronize");
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->captured = new CudaHostGraph;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->captured, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CudaHostGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  Count("cudaGraphLaunch");
  for (const auto& work : executable->work) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
