// Attention in plain loops, for f32 and for head dims that are no multiple of 8 or above 256: audits and tiny models, not
// fast. A warp takes one query row: a segment's scores are computed a key per lane, its values a dim per lane, keys in
// ascending order.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(kWarpSize) GeneralKernel(AttentionInput<T> input) {
  float* weights = SharedMemory<float>();   // [kSegmentTokens]
  float* total = weights + kSegmentTokens;  // [head_dim]: a lane its own dims
  const int64_t t = blockIdx.x;
  const int head = blockIdx.y, lane = threadIdx.x, dim = input.head_dim;
  const int s = SequenceOf(input, static_cast<int>(t));
  const int length = input.start[s] + static_cast<int>(t) - input.row_begin[s] + 1;
  const int32_t* blocks = input.block_table + s * input.max_blocks;
  const T* q = input.q + (t * input.heads + head) * dim;
  const auto row_at = [&](const T* cache, int position) {
    const int64_t block = int64_t{blocks[position / kBlockTokens]} * input.kv_heads + head / input.group();
    return cache + (block * kBlockTokens + position % kBlockTokens) * dim;
  };
  float total_max = -INFINITY, total_sum = 0;
  for (int d = lane; d < dim; d += kWarpSize) total[d] = 0;
  for (int first = 0; first < length; first += kSegmentTokens) {
    const int count = min(kSegmentTokens, length - first);
    __syncwarp();  // the last segment's weights have been read
    float max = -INFINITY;
    for (int i = lane; i < count; i += kWarpSize) {
      const T* key = row_at(input.k_cache, first + i);
      float dot = 0;
      for (int d = 0; d < dim; ++d) dot = fmaf(ToF32(q[d]), ToF32(key[d]), dot);
      weights[i] = dot * input.scale;
      max = fmaxf(max, weights[i]);
    }
    max = WarpMax(max);
    float sum = 0;
    for (int i = lane; i < count; i += kWarpSize) {
      weights[i] = exp2f(weights[i] - max);
      sum += weights[i];
    }
    sum = WarpSum(sum);
    __syncwarp();  // weights are here
    const Merge merge(total_max, max);
    total_max = merge.max;
    total_sum = merge(total_sum, sum);
    for (int d = lane; d < dim; d += kWarpSize) {
      float value = 0;
      for (int i = 0; i < count; ++i) value = fmaf(weights[i], ToF32(row_at(input.v_cache, first + i)[d]), value);
      total[d] = merge(total[d], value);
    }
  }
  const float inverse = 1.0f / total_sum;
  T* out = input.out + t * input.out_stride + int64_t{head} * dim;
  for (int d = lane; d < dim; d += kWarpSize) out[d] = Finish<T>(total[d], inverse, GateOf(input, t, head, d));
}

}  // namespace

template <typename T>
void LaunchGeneralAttention(const AttentionInput<T>& input, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(input.num_rows), static_cast<unsigned>(input.heads));
  Launch({grid, kWarpSize, (kSegmentTokens + input.head_dim) * sizeof(float), stream}, GeneralKernel<T>, input);
}

template void LaunchGeneralAttention<float>(const AttentionInput<float>&, cudaStream_t);
template void LaunchGeneralAttention<Bf16>(const AttentionInput<Bf16>&, cudaStream_t);
template void LaunchGeneralAttention<F16>(const AttentionInput<F16>&, cudaStream_t);

}  // namespace plumbline::cuda
