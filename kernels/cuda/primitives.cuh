// What kernels are written in: CUDA's own words (threadIdx, __syncthreads, __shfl_xor_sync, ...), and here the few
// instructions that have no intrinsic, each with a host twin of the same meaning. nvcc compiles the sources for GPUs; over
// tests/cuda_host/cuda_runtime.h they are host C++, one fiber per CUDA thread. So kernels hold no asm and no <<<>>>, and all
// shared memory is dynamic (SharedMemory).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/half.h"

namespace plumbline::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarpSize = 32;

#ifdef __CUDACC__
#define PLUMBLINE_DEVICE __device__ __forceinline__
#else
#define PLUMBLINE_DEVICE inline
#endif

// The block's dynamic shared memory, aligned to 128 bytes; undefined at the start.
template <typename T>
PLUMBLINE_DEVICE T* SharedMemory() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) unsigned char plumbline_shared_memory[];
  return reinterpret_cast<T*>(plumbline_shared_memory);
#else
  return reinterpret_cast<T*>(cuda_host::DynamicSharedMemory());
#endif
}

// ---- 16-bit floats; to 16 bits rounds to nearest, ties to even -----------------------------------------------------

PLUMBLINE_DEVICE float ToF32(float x) { return x; }
PLUMBLINE_DEVICE float ToF32(Bf16 x) {
#ifdef __CUDACC__
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  return ToFloat(x);
#endif
}
PLUMBLINE_DEVICE float ToF32(F16 x) {
#ifdef __CUDACC__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return ToFloat(x);
#endif
}

template <typename T>
PLUMBLINE_DEVICE T FromF32(float x);
template <>
PLUMBLINE_DEVICE float FromF32<float>(float x) {
  return x;
}
template <>
PLUMBLINE_DEVICE Bf16 FromF32<Bf16>(float x) {
#ifdef __CUDACC__
  Bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  return FromFloat<Bf16>(x);
#endif
}
template <>
PLUMBLINE_DEVICE F16 FromF32<F16>(float x) {
#ifdef __CUDACC__
  F16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  return FromFloat<F16>(x);
#endif
}

// Two neighbours in one register, the first in the lower half.
template <typename T>
PLUMBLINE_DEVICE uint32_t Pack(float low, float high) {
  return static_cast<uint32_t>(FromF32<T>(low).bits) | static_cast<uint32_t>(FromF32<T>(high).bits) << 16;
}
template <typename T>
PLUMBLINE_DEVICE float LowOf(uint32_t pair) {
  return ToF32(T{static_cast<uint16_t>(pair & 0xffffu)});
}
template <typename T>
PLUMBLINE_DEVICE float HighOf(uint32_t pair) {
  return ToF32(T{static_cast<uint16_t>(pair >> 16)});
}

// ---- tensor cores: mma.sync m16n8k16, f32 sums ----------------------------------------------------------------------

// With g = lane / 4 and t = lane % 4, a lane holds of A [16, 16] row major the pairs of columns a0 = (g, 2t), a1 = (g + 8,
// 2t), a2 = (g, 2t + 8), a3 = (g + 8, 2t + 8); of B [16, 8] the pairs of rows b0 = (2t, g), b1 = (2t + 8, g); of C and D
// [16, 8] d0 = (g, 2t), d1 = (g, 2t + 1), d2 = (g + 8, 2t), d3 = (g + 8, 2t + 1). D = A B + D.
template <typename T>  // Bf16 or F16
PLUMBLINE_DEVICE void Mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#ifdef __CUDACC__
template <>
PLUMBLINE_DEVICE void Mma16816<Bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
PLUMBLINE_DEVICE void Mma16816<F16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
template <typename T>
void Mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  const auto all = cuda_host::ExchangeInWarp(Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const int lane = cuda_host::Lane();
  const auto at = [](uint32_t pair, int k) { return k % 2 == 0 ? LowOf<T>(pair) : HighOf<T>(pair); };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const float x = at(all[row % 8 * 4 + k % 8 / 2].a[(row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0)], k);
      const float y = at(all[column * 4 + k % 8 / 2].b[k >= 8 ? 1 : 0], k);
      d[i] += x * y;
    }
  }
}
#endif

// Four 8x8 matrices of 16-bit values in shared memory: lane l gives the address of row l % 8 of matrix l / 8, aligned to 16
// bytes. r[j] of lane l: the pair of columns 2 (l % 4) of row l / 4 of matrix j.
PLUMBLINE_DEVICE void LoadMatrices(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  const auto rows = cuda_host::ExchangeInWarp(static_cast<const uint16_t*>(row));
  const int lane = cuda_host::Lane();
  for (int j = 0; j < 4; ++j) {
    const uint16_t* pair = rows[8 * j + lane / 4] + lane % 4 * 2;
    r[j] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
#endif
}

// The same, each matrix transposed: r[j] of lane l is the pair of rows 2 (l % 4) of column l / 4.
PLUMBLINE_DEVICE void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  const auto rows = cuda_host::ExchangeInWarp(static_cast<const uint16_t*>(row));
  const int lane = cuda_host::Lane();
  for (int j = 0; j < 4; ++j) {
    const uint16_t* first = rows[8 * j + lane % 4 * 2];
    const uint16_t* second = rows[8 * j + lane % 4 * 2 + 1];
    r[j] = first[lane / 4] | static_cast<uint32_t>(second[lane / 4]) << 16;
  }
#endif
}

// ---- copies from global to shared memory -----------------------------------------------------------------------------

// Starts a copy of 16 aligned bytes; zeros when not valid (from is not read then). Part of the group that the next
// CommitCopies ends.
PLUMBLINE_DEVICE void CopyAsync16(void* to_shared, const void* from, bool valid = true) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(address), "l"(from), "r"(bytes) : "memory");
#else
  cuda_host::CopyAsync16(to_shared, from, valid);
#endif
}
PLUMBLINE_DEVICE void CommitCopies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" : : : "memory");
#else
  cuda_host::CommitCopies();
#endif
}
// Until at most kPending groups of this thread are under way. Other threads see the bytes after the next __syncthreads.
template <int kPending>
PLUMBLINE_DEVICE void WaitForCopies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
#else
  cuda_host::WaitForCopies(kPending);
#endif
}

// 16 bytes that are read once: they leave the caches first.
PLUMBLINE_DEVICE uint4 LoadOnce(const uint4* from) {
#ifdef __CUDACC__
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
#else
  return *from;
#endif
}

// ---- sums over a warp and a block, in one fixed tree ------------------------------------------------------------------

// Lane l with lane l ^ 16, then 8, 4, 2, 1: every lane has the sum.
PLUMBLINE_DEVICE float WarpSum(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
PLUMBLINE_DEVICE float WarpMax(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
// Warps in ascending order after the lanes. scratch: one float per warp, in shared memory. All threads of the block call it.
PLUMBLINE_DEVICE float BlockSum(float x, float* scratch) {
  x = WarpSum(x);
  const int warp = threadIdx.x / kWarpSize, num_warps = blockDim.x / kWarpSize;
  __syncthreads();  // scratch may be in use
  if (threadIdx.x % kWarpSize == 0) scratch[warp] = x;
  __syncthreads();
  float sum = scratch[0];
  for (int w = 1; w < num_warps; ++w) sum += scratch[w];
  return sum;
}

}  // namespace plumbline::cuda
