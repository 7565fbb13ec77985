// Attention of the sequences with few rows, decode above all: blocks take single segments, so that one long sequence fills
// the device too; what they give is merged by a second kernel. Limited by bytes: every key and value is read once for all
// heads of its group, partial results add 1 / 128 of that per head of the group; 80 % of bandwidth expected from a few
// thousand positions in all on.
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

constexpr int kParts = 4;            // warps per row tile: all the block has
constexpr int kTargetBlocks = 4096;  // enough to balance long and short sequences
constexpr int kMergeThreads = 64;    // four dims each
constexpr int kMergeAtOnce = 8;      // loads under way per thread

// Of a multiprocessor, which keeps its memory busy with the keys or values of a KV block under way in each of 2 to 4. What
// is asked for is what compilers reach without spilling.
template <int kDim>
constexpr int kMinBlocks = kDim == 128 ? 4 : 2;

// Partial results in the workspace. A slot is a row of a short sequence.
struct Partials {
  float* values;  // [slots, heads, segments of a pass, head_dim]
  float2* stats;  // [slots, heads, segments of a pass]: max, sum
  float* totals;  // [slots, heads, head_dim + 4]: values, max, sum after the passes so far
  int segments_per_pass;
  int first_segment;  // of this pass
  bool all_short;
};

// Slot of a sequence's first row. With all_short slots are rows, else every sequence has short_tokens of them.
template <typename T>
PLUMBLINE_DEVICE int FirstSlot(const AttentionInput<T>& input, const Partials& partials, int sequence) {
  return partials.all_short ? input.row_begin[sequence] : sequence * input.short_tokens;
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kWarpSize* kParts, kMinBlocks<kDim>)
    SegmentKernel(AttentionInput<T> input, Partials partials) {
  using Tile = AttentionTile<T, kDim, 1, kParts>;
  const int s = blockIdx.z, tokens = input.num_tokens(s), group = input.group();
  if (tokens == 0 || (!partials.all_short && tokens > input.short_tokens)) return;
  const int first_segment = partials.first_segment + static_cast<int>(blockIdx.x);
  const int end_segment = partials.first_segment + partials.segments_per_pass;
  QueryTile rows = {.row_begin = input.row_begin[s],
                    .start = input.start[s],
                    .num_rows = tokens * group,
                    .kv_head = static_cast<int>(blockIdx.y),
                    .group = group,
                    .first = 0};
  const int slot = FirstSlot(input, partials, s) - rows.row_begin;  // of row t: slot + t
  for (; rows.first < rows.num_rows; rows.first += Tile::kRows) {
    Tile tile(input, rows, s);
    tile.Walk(first_segment, gridDim.x, end_segment, [&](int segment, const typename Tile::Segment& result) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const QueryRow query = tile.Query(half);
        if (!rows.Has(tile.row(half)) || query.position < segment * kSegmentTokens) continue;
        const int64_t at =
            ((slot + query.t) * input.heads + query.head) * partials.segments_per_pass + segment - partials.first_segment;
        if (tile.IsFirstOfRow()) partials.stats[at] = make_float2(result.max[half], result.sum[half]);
#pragma unroll
        for (int j = 0; j < Tile::kColumnTiles; ++j) {
          if (tile.column(j) >= input.head_dim) continue;
          *reinterpret_cast<float2*>(partials.values + at * input.head_dim + tile.column(j)) =
              make_float2(result.values[j][2 * half], result.values[j][2 * half + 1]);
        }
      }
    });
  }
}

// A block per slot and head. Warps compute the same weights, each for its own dims: 32 segments at a time, one per lane.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads) MergeKernel(AttentionInput<T> input, Partials partials) {
  const int slot = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % kWarpSize, dim = static_cast<int>(threadIdx.x) * 4;
  const int s = partials.all_short ? SequenceOf(input, slot) : slot / input.short_tokens;
  const int tokens = input.num_tokens(s), token = slot - FirstSlot(input, partials, s);
  if (token >= tokens || (!partials.all_short && tokens > input.short_tokens)) return;
  const int64_t row = int64_t{slot} * input.heads + head, at = row * partials.segments_per_pass;
  const int num_segments = (input.start[s] + token) / kSegmentTokens + 1;
  const int count = min(num_segments - partials.first_segment, partials.segments_per_pass);
  if (count <= 0) return;
  const bool has_dims = dim < input.head_dim;
  float* saved = partials.totals + row * (input.head_dim + 4);
  float max = -INFINITY, sum = 0;
  float4 total = make_float4(0, 0, 0, 0);
  if (partials.first_segment > 0) {
    max = saved[input.head_dim], sum = saved[input.head_dim + 1];
    if (has_dims) total = *reinterpret_cast<const float4*>(saved + dim);
    __syncthreads();  // they are overwritten below
  }
  for (int first = 0; first < count; first += kWarpSize) {
    const float2 stats = first + lane < count ? partials.stats[at + first + lane] : make_float2(-INFINITY, 0);
    float running = fmaxf(max, stats.x);
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) running = fmaxf(running, __shfl_up_sync(kAllLanes, running, step));
    const float before = __shfl_up_sync(kAllLanes, running, 1);
    const Merge own(lane == 0 ? max : before, stats.x);
    max = __shfl_sync(kAllLanes, running, kWarpSize - 1);
#pragma unroll 1
    for (int begin = 0; begin < min(kWarpSize, count - first); begin += kMergeAtOnce) {
      float4 next[kMergeAtOnce];
#pragma unroll
      for (int i = 0; i < kMergeAtOnce; ++i) {
        const int segment = first + begin + i;
        next[i] = has_dims && segment < count
                      ? *reinterpret_cast<const float4*>(partials.values + (at + segment) * input.head_dim + dim)
                      : make_float4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < kMergeAtOnce; ++i) {
        const float keep = __shfl_sync(kAllLanes, own.keep, begin + i), add = __shfl_sync(kAllLanes, own.add, begin + i);
        const float segment_sum = __shfl_sync(kAllLanes, stats.y, begin + i);
        if (first + begin + i >= count) continue;
        sum = Merge::Apply(sum, segment_sum, keep, add);
        total.x = Merge::Apply(total.x, next[i].x, keep, add);
        total.y = Merge::Apply(total.y, next[i].y, keep, add);
        total.z = Merge::Apply(total.z, next[i].z, keep, add);
        total.w = Merge::Apply(total.w, next[i].w, keep, add);
      }
    }
  }
  if (partials.first_segment + count < num_segments) {
    if (has_dims) *reinterpret_cast<float4*>(saved + dim) = total;
    if (threadIdx.x == 0) saved[input.head_dim] = max, saved[input.head_dim + 1] = sum;
  } else if (has_dims) {
    const int64_t t = input.row_begin[s] + token;
    const float inverse = 1.0f / sum;
    const float* gate = GateOf(input, t, head, dim);
    T* out = input.out + t * input.out_stride + int64_t{head} * input.head_dim + dim;
    const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = Finish<T>(values[i], inverse, gate == nullptr ? nullptr : gate + i);
  }
}

}  // namespace

template <typename T>
void LaunchSplitAttention(const AttentionInput<T>& input, const SplitPlan& plan, float* workspace, cudaStream_t stream) {
  const int64_t rows = int64_t{plan.num_slots} * input.heads;
  Partials partials = {.values = workspace,
                       .stats = nullptr,
                       .totals = workspace + rows * plan.segments_per_pass * input.head_dim,
                       .segments_per_pass = plan.segments_per_pass,
                       .first_segment = 0,
                       .all_short = plan.all_short};
  partials.stats = reinterpret_cast<float2*>(partials.totals + rows * (input.head_dim + 4));
  const int64_t lanes = int64_t{input.num_sequences} * input.kv_heads;
  const int64_t blocks = std::clamp<int64_t>(kTargetBlocks / lanes, 1, plan.segments_per_pass);
  VisitHeadDim(input.head_dim, [&]<int kDim>() {
    using Tile = AttentionTile<T, kDim, 1, kParts>;
    for (int pass = 0; pass < plan.num_passes; ++pass, partials.first_segment += plan.segments_per_pass) {
      const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(input.kv_heads),
                      static_cast<unsigned>(input.num_sequences));
      Launch({grid, Tile::kThreads, Tile::kSharedBytes, stream}, SegmentKernel<T, kDim>, input, partials);
      Launch({dim3(static_cast<unsigned>(plan.num_slots), static_cast<unsigned>(input.heads)), kMergeThreads, 0, stream},
             MergeKernel<T>, input, partials);
    }
  });
}

template void LaunchSplitAttention<Bf16>(const AttentionInput<Bf16>&, const SplitPlan&, float*, cudaStream_t);
template void LaunchSplitAttention<F16>(const AttentionInput<F16>&, const SplitPlan&, float*, cudaStream_t);

}  // namespace plumbline::cuda
