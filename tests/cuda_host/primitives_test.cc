// The host's CUDA keeps CUDA's promises, and shows the faults it is there to find.
#include "kernels/cuda/primitives.cuh"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kernels/cuda/launch.cuh"

namespace plumbline::cuda {
namespace {

// One warp: D [16, 8] = A [16, K] B [8, K]^T, operands through ldmatrix.
__global__ void ProductKernel(float* d, const Bf16* a, const Bf16* b, int k) {
  Bf16* shared_a = SharedMemory<Bf16>();
  Bf16* shared_b = shared_a + 16 * 16;
  const int lane = threadIdx.x;
  float sums[4] = {};
  for (int first = 0; first < k; first += 16) {
    __syncwarp();
    CopyAsync16(shared_a + lane / 2 * 16 + lane % 2 * 8, a + lane / 2 * k + first + lane % 2 * 8);
    if (lane < 16) CopyAsync16(shared_b + lane / 2 * 16 + lane % 2 * 8, b + lane / 2 * k + first + lane % 2 * 8);
    CommitCopies();
    WaitForCopies<0>();
    __syncwarp();
    uint32_t fa[4], fb[4];
    LoadMatrices(fa, shared_a + (lane % 16) * 16 + lane / 16 * 8);
    LoadMatrices(fb, shared_b + (lane % 8) * 16 + lane / 8 % 2 * 8);
    const uint32_t pair[2] = {fb[0], fb[1]};
    Mma16816<Bf16>(sums, fa, pair);
  }
  const int g = lane / 4, t = lane % 4;
  d[g * 8 + 2 * t] = sums[0];
  d[g * 8 + 2 * t + 1] = sums[1];
  d[(g + 8) * 8 + 2 * t] = sums[2];
  d[(g + 8) * 8 + 2 * t + 1] = sums[3];
}

TEST(CudaPrimitives, TensorCoreProductsEqualPlainLoops) {
  std::mt19937 random(3);
  std::uniform_int_distribution<int> small(-8, 8);  // sums are exact
  const int k = 64;
  std::vector<Bf16> a(16 * k), b(8 * k);
  for (Bf16& x : a) x = FromFloat<Bf16>(static_cast<float>(small(random)));
  for (Bf16& x : b) x = FromFloat<Bf16>(static_cast<float>(small(random)));
  std::vector<float> d(16 * 8, NAN);
  for (uint64_t seed : {0, 1, 2}) {
    cuda_host::SetFiberSeed(seed);
    Launch({1, 32, (16 + 8) * 16 * sizeof(Bf16), nullptr}, ProductKernel, d.data(), a.data(), b.data(), k);
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        float sum = 0;
        for (int l = 0; l < k; ++l) sum += ToFloat(a[i * k + l]) * ToFloat(b[j * k + l]);
        EXPECT_EQ(d[i * 8 + j], sum) << i << ", " << j;
      }
    }
  }
  cuda_host::SetFiberSeed(0);
}

__global__ void TransposeKernel(uint32_t* out, const uint16_t* matrices) {
  uint16_t* shared = SharedMemory<uint16_t>();
  for (int i = threadIdx.x; i < 4 * 64; i += kWarpSize) shared[i] = matrices[i];
  __syncwarp();
  uint32_t r[4];
  LoadMatricesTransposed(r, shared + threadIdx.x * 8);
  for (int j = 0; j < 4; ++j) out[j * kWarpSize + threadIdx.x] = r[j];
}

TEST(CudaPrimitives, TransposedMatrices) {
  std::vector<uint16_t> matrices(4 * 64);
  for (size_t i = 0; i < matrices.size(); ++i) matrices[i] = static_cast<uint16_t>(i);
  std::vector<uint32_t> out(4 * 32);
  Launch({1, 32, 512, nullptr}, TransposeKernel, out.data(), matrices.data());
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane % 4 * 2, column = lane / 4;
      EXPECT_EQ(out[j * 32 + lane] & 0xffff, j * 64u + row * 8 + column);
      EXPECT_EQ(out[j * 32 + lane] >> 16, j * 64u + (row + 1) * 8 + column);
    }
  }
}

// Each thread passes its number to its neighbour through shared memory.
__global__ void NeighbourKernel(int* out, bool with_barrier) {
  int* shared = SharedMemory<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

TEST(CudaHost, AMissingBarrierShows) {
  const auto is_right = [](bool with_barrier, uint64_t seed) {
    std::vector<int> out(128);
    cuda_host::SetFiberSeed(seed);
    Launch({1, 128, 128 * sizeof(int), nullptr}, NeighbourKernel, out.data(), with_barrier);
    cuda_host::SetFiberSeed(0);
    for (int i = 0; i < 128; ++i) {
      if (out[i] != (i + 1) % 128) return false;
    }
    return true;
  };
  for (uint64_t seed : {0, 1, 2, 3}) {
    EXPECT_TRUE(is_right(true, seed));
    EXPECT_FALSE(is_right(false, seed));
  }
}

__global__ void HalfBarrierKernel() {
  if (threadIdx.x == 40) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

TEST(CudaHostDeathTest, ABarrierThatNotAllReachStops) {
  EXPECT_DEATH(Launch({1, 64, 0, nullptr}, HalfBarrierKernel), "deadlock");
}

__global__ void SumKernel(float* out) {
  out[threadIdx.x] = BlockSum(static_cast<float>(threadIdx.x), SharedMemory<float>());
}

TEST(CudaPrimitives, BlockSumIsWhole) {
  std::vector<float> out(96);
  Launch({1, 96, 3 * sizeof(float), nullptr}, SumKernel, out.data());
  for (float x : out) EXPECT_EQ(x, 95.0f * 96 / 2);
}

}  // namespace
}  // namespace plumbline::cuda
