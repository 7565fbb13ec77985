// Generated rows of the gated delta rule: the recurrence, with 32 columns of a head's state in the registers of a block.
// Limited by the bytes of the state, which is read and written once whatever the number of rows: 2 x 4 P Q per head and
// sequence. Sums over P: a thread takes keys p, p + 16, ... in ascending order, then the tree of lanes 16 and 8 apart, then
// warps in order.
#include "kernels/cuda/delta_net_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kColumns = 32;           // of a block
constexpr int kGroups = kThreads / 8;  // threads with the same four columns
constexpr int kPartial = 8;            // sums that a thread gives: of four columns, with k and with q

// Four columns of the state, some of which may not exist.
template <bool kInFours>
PLUMBLINE_DEVICE float4 LoadFour(const float* from, int num_columns) {
  if (kInFours) return num_columns > 0 ? *reinterpret_cast<const float4*>(from) : make_float4(0, 0, 0, 0);
  return make_float4(num_columns > 0 ? from[0] : 0.0f, num_columns > 1 ? from[1] : 0.0f, num_columns > 2 ? from[2] : 0.0f,
                     num_columns > 3 ? from[3] : 0.0f);
}
template <bool kInFours>
PLUMBLINE_DEVICE void StoreFour(float* to, int num_columns, float4 x) {
  if (kInFours) {
    if (num_columns > 0) *reinterpret_cast<float4*>(to) = x;
    return;
  }
  if (num_columns > 0) to[0] = x.x;
  if (num_columns > 1) to[1] = x.y;
  if (num_columns > 2) to[2] = x.z;
  if (num_columns > 3) to[3] = x.w;
}

// Threads 8 i + j of a block have columns [4 j, 4 j + 4) of keys i, i + 16, ...
template <int kKeyTiles, bool kInFours>
__global__ void __launch_bounds__(kThreads) RecurrentKernel(DeltaNetStep step) {
  const int slices = (step.value_dim + kColumns - 1) / kColumns;
  const int64_t task = blockIdx.x;
  const int slice = static_cast<int>(task % slices), head = static_cast<int>(task / slices % step.num_heads);
  const int sequence = static_cast<int>(task / slices / step.num_heads);
  const int num_prompt_rows = step.num_prompt_rows[sequence];
  const int first = step.row_begin[sequence] + num_prompt_rows, end = step.row_begin[sequence + 1];
  if (first >= end) return;

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, group = threadIdx.x / 8;
  const int column = slice * kColumns + threadIdx.x % 8 * 4, num_columns = step.value_dim - column;
  const int key_head = head / (step.num_heads / step.num_key_heads);
  float* keys = SharedMemory<float>();         // [16 kKeyTiles], normalised, zero past P
  float* queries = keys + 16 * kKeyTiles;      // likewise
  float* products = queries + 16 * kKeyTiles;  // [1]: q . k; padded to 4
  float* partials = products + 4;              // [kWarps, 8, kPartial]

  float* state = StateOf(step, sequence, head) + column;
  const bool is_fresh = step.start[sequence] == 0 && num_prompt_rows == 0;
  float4 s[kKeyTiles];  // keys group + 16 i
#pragma unroll
  for (int i = 0; i < kKeyTiles; ++i) {
    const int p = group + kGroups * i;
    s[i] = is_fresh || p >= step.key_dim ? make_float4(0, 0, 0, 0)
                                         : LoadFour<kInFours>(state + int64_t{p} * step.value_dim, num_columns);
  }
  for (int row = first; row < end; ++row) {
    __syncthreads();  // the last row's vectors are in use
    if (warp == 0) {
      const float *k = KeyAt(step, row, key_head), *q = QueryAt(step, row, key_head);
      float k_lane[kKeyTiles / 2], q_lane[kKeyTiles / 2], k_squares = 0, q_squares = 0, product = 0;
#pragma unroll
      for (int i = 0; i < kKeyTiles / 2; ++i) {
        const int p = lane + kWarpSize * i;
        k_lane[i] = p < step.key_dim ? k[p] : 0.0f;
        q_lane[i] = p < step.key_dim ? q[p] : 0.0f;
        k_squares = fmaf(k_lane[i], k_lane[i], k_squares);
        q_squares = fmaf(q_lane[i], q_lane[i], q_squares);
      }
      const float k_factor = NormFactor(k_squares), q_factor = NormFactor(q_squares), scale = QueryScale(step);
#pragma unroll
      for (int i = 0; i < kKeyTiles / 2; ++i) {
        const float key = k_lane[i] * k_factor, query = q_lane[i] * q_factor * scale;
        keys[lane + kWarpSize * i] = key;
        queries[lane + kWarpSize * i] = query;
        product = fmaf(query, key, product);
      }
      product = WarpSum(product);
      if (lane == 0) *products = product;
    }
    const HeadGates gates = GatesOf(step, row, head);
    const float decay = expf(gates.log_decay);
    const float4 v = LoadFour<false>(ValueAt(step, row, head) + column, num_columns);
    __syncthreads();
    float sums[kPartial] = {};  // S^T k, S^T q
#pragma unroll
    for (int i = 0; i < kKeyTiles; ++i) {
      const float key = keys[group + kGroups * i], query = queries[group + kGroups * i];
      sums[0] = fmaf(s[i].x, key, sums[0]);
      sums[1] = fmaf(s[i].y, key, sums[1]);
      sums[2] = fmaf(s[i].z, key, sums[2]);
      sums[3] = fmaf(s[i].w, key, sums[3]);
      sums[4] = fmaf(s[i].x, query, sums[4]);
      sums[5] = fmaf(s[i].y, query, sums[5]);
      sums[6] = fmaf(s[i].z, query, sums[6]);
      sums[7] = fmaf(s[i].w, query, sums[7]);
    }
#pragma unroll
    for (int j = 0; j < kPartial; ++j) {
      sums[j] += __shfl_xor_sync(kAllLanes, sums[j], 16);
      sums[j] += __shfl_xor_sync(kAllLanes, sums[j], 8);
    }
    if (lane < 8) {
      float4* to = reinterpret_cast<float4*>(partials + (warp * 8 + lane) * kPartial);
      to[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
      to[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
    }
    __syncthreads();
    float4 read = make_float4(0, 0, 0, 0), answer = read;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float4* from = reinterpret_cast<const float4*>(partials + (w * 8 + lane % 8) * kPartial);
      const float4 a = from[0], b = from[1];
      read = make_float4(read.x + a.x, read.y + a.y, read.z + a.z, read.w + a.w);
      answer = make_float4(answer.x + b.x, answer.y + b.y, answer.z + b.z, answer.w + b.w);
    }
    // o = S'^T q = e^g S^T q + (q . k) d
    const float4 d = make_float4(gates.beta * (v.x - decay * read.x), gates.beta * (v.y - decay * read.y),
                                 gates.beta * (v.z - decay * read.z), gates.beta * (v.w - decay * read.w));
    if (group == 0) {
      const float qk = *products;
      const float4 out = make_float4(fmaf(qk, d.x, decay * answer.x), fmaf(qk, d.y, decay * answer.y),
                                     fmaf(qk, d.z, decay * answer.z), fmaf(qk, d.w, decay * answer.w));
      StoreFour<kInFours>(step.out + (int64_t{row} * step.num_heads + head) * step.value_dim + column, num_columns, out);
    }
#pragma unroll
    for (int i = 0; i < kKeyTiles; ++i) {
      const float key = keys[group + kGroups * i];
      s[i] = make_float4(fmaf(key, d.x, decay * s[i].x), fmaf(key, d.y, decay * s[i].y), fmaf(key, d.z, decay * s[i].z),
                         fmaf(key, d.w, decay * s[i].w));
    }
  }
#pragma unroll
  for (int i = 0; i < kKeyTiles; ++i) {
    const int p = group + kGroups * i;
    if (p < step.key_dim) StoreFour<kInFours>(state + int64_t{p} * step.value_dim, num_columns, s[i]);
  }
}

template <int kKeyTiles>
void LaunchRecurrence(const DeltaNetStep& step, cudaStream_t stream) {
  const int64_t tasks = int64_t{step.num_sequences} * step.num_heads * BlocksFor(step.value_dim, kColumns);
  const size_t shared = (2 * 16 * kKeyTiles + 4 + kWarps * 8 * kPartial) * sizeof(float);
  const bool in_fours = step.value_dim % 4 == 0 && reinterpret_cast<uintptr_t>(step.state) % 16 == 0;
  Launch({static_cast<unsigned>(tasks), kThreads, shared, stream},
         in_fours ? RecurrentKernel<kKeyTiles, true> : RecurrentKernel<kKeyTiles, false>, step);
}

}  // namespace

void RunRecurrence(const DeltaNetStep& step, cudaStream_t stream) {
  switch (PaddedKeyTiles(step.key_dim)) {
    case 2:
      return LaunchRecurrence<2>(step, stream);
    case 4:
      return LaunchRecurrence<4>(step, stream);
    case 8:
      return LaunchRecurrence<8>(step, stream);
    default:
      return LaunchRecurrence<16>(step, stream);
  }
}

}  // namespace plumbline::cuda
