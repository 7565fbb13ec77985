// CUDA as host C++, for kernels/cuda/*.cu on machines without a GPU: every CUDA thread of a block is a fiber, blocks run one
// after another, warp collectives and barriers are where fibers change. Only what the kernels use is here; calls of the
// runtime are counted (CallsOf), streams run at once, graphs are lists of launches.
//
// Found here: a barrier that not all threads reach (stops with a message), shared memory that is read before it is written
// (poisoned with NaNs before each block), a missing barrier (fibers run in random order between barriers: SetFiberSeed),
// memory errors (under ASan). Not found: races between blocks, misaligned asynchronous copies through other pointers.
#pragma once

#include <math.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

// ---- the runtime -------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
struct CudaHostStream;
struct CudaHostEvent;
struct CudaHostGraph;
using cudaStream_t = CudaHostStream*;
using cudaEvent_t = CudaHostEvent*;
using cudaGraph_t = CudaHostGraph*;
using cudaGraphExec_t = CudaHostGraph*;
inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int multiProcessorCount;
  int major, minor;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMalloc(void** data, size_t num_bytes);  // filled with NaNs
cudaError_t cudaFree(void* data);
cudaError_t cudaMallocHost(void** data, size_t num_bytes);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* data, int value, size_t num_bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);

// ---- blocks of fibers --------------------------------------------------------------------------------------------

namespace cuda_host {

inline constexpr int kWarp = 32;
inline constexpr size_t kExchangeBytes = 64;  // what a thread shows its warp at once

struct Place {
  dim3 grid, block;
  uint3 block_index, thread_index;
};
const Place& Here();  // of the running fiber
int Lane();
void* DynamicSharedMemory();
void SyncBlock();
void SyncWarp();

// Shows `own` to the warp and returns a pointer to all lanes' values, valid until this thread's next exchange but one.
const std::byte (*ExchangeBytes(const void* own, size_t num_bytes))[kExchangeBytes];
template <typename T>
class WarpValues {
 public:
  explicit WarpValues(const std::byte (*values)[kExchangeBytes]) : values_(values) {}
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, values_[lane], sizeof value);
    return value;
  }

 private:
  const std::byte (*values_)[kExchangeBytes];
};
template <typename T>
WarpValues<T> ExchangeInWarp(const T& own) {
  static_assert(sizeof(T) <= kExchangeBytes && std::is_trivially_copyable_v<T>);
  return WarpValues<T>(ExchangeBytes(&own, sizeof own));
}

// Asynchronous copies happen when they are waited for, as late as they may.
void CopyAsync16(void* to, const void* from, bool valid);
void CommitCopies();
void WaitForCopies(int num_pending);

void Launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, std::function<void()> kernel);

// The order in which fibers run between barriers, from the next launch of this thread on; 0: ascending.
void SetFiberSeed(uint64_t seed);
// How often a function of the runtime ("cudaMalloc", "Launch", ...) was called by this process.
int64_t CallsOf(const std::string& function);

}  // namespace cuda_host

#define threadIdx (::cuda_host::Here().thread_index)
#define blockIdx (::cuda_host::Here().block_index)
#define blockDim (::cuda_host::Here().block)
#define gridDim (::cuda_host::Here().grid)

// ---- what kernels call -------------------------------------------------------------------------------------------

inline void __syncthreads() { cuda_host::SyncBlock(); }
inline void __syncwarp(unsigned = 0xffffffffu) { cuda_host::SyncWarp(); }
template <typename T>
T __shfl_sync(unsigned, T value, int lane, int width = 32) {
  const int base = cuda_host::Lane() / width * width;
  return cuda_host::ExchangeInWarp(value)[base + ((lane % width) + width) % width];
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return cuda_host::ExchangeInWarp(value)[cuda_host::Lane() ^ mask];
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int width = 32) {
  const int lane = cuda_host::Lane(), from = lane - static_cast<int>(delta);
  return cuda_host::ExchangeInWarp(value)[from < lane / width * width ? lane : from];
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
  const int lane = cuda_host::Lane(), from = lane + static_cast<int>(delta);
  return cuda_host::ExchangeInWarp(value)[from >= (lane / width + 1) * width ? lane : from];
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const auto all = cuda_host::ExchangeInWarp(predicate);
  unsigned bits = 0;
  for (int lane = 0; lane < cuda_host::kWarp; ++lane) bits |= static_cast<unsigned>(all[lane] != 0) << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
// Between the threads of a block; blocks run one after another.
template <typename T>
T atomicAdd(T* to, T value) {
  const T old = *to;
  *to = old + value;
  return old;
}
template <typename T>
T atomicMax(T* to, T value) {
  const T old = *to;
  if (value > old) *to = value;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
