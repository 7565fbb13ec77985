// CausalConv, GatedDeltaNet.
#include <algorithm>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/sequence_kernels.h"

namespace plumbline {

void CpuOps::DoCausalConv(const CausalConvArgs& args) {
  constexpr int64_t kChannelsPerTask = kMaxConvChannels;
  const int64_t channels = args.out.dim(1), width = args.weight.dim(1), x_stride = args.x.dim(1);
  PL_CHECK(width <= kMaxConvWidth);
  const int64_t blocks = (channels + kChannelsPerTask - 1) / kChannelsPerTask;
  const auto kernel = SequenceKernelsOf(arithmetic_).causal_conv[ActIndex(args.state.dtype())];
  const int32_t* row_begin = args.sequences.row_begin.as<int32_t>();
  pool_.ParallelFor(args.sequences.num_sequences() * blocks, [&](int64_t task, int) {
    const int64_t s = task / blocks, channel = task % blocks * kChannelsPerTask;
    const int64_t slot = args.sequences.state_slot.as<int32_t>()[s];
    std::byte* state = static_cast<std::byte*>(args.state.raw()) +
                       (slot * channels + channel) * (width - 1) * static_cast<int64_t>(SizeOf(args.state.dtype()));
    kernel({.out = args.out.as<float>() + row_begin[s] * channels + channel,
            .out_stride = channels,
            .state = state,
            .x = args.x.as<float>() + row_begin[s] * x_stride + channel,
            .x_stride = x_stride,
            .weight = args.weight.as<float>() + channel * width,
            .num_channels = static_cast<int>(std::min(kChannelsPerTask, channels - channel)),
            .width = static_cast<int>(width),
            .num_rows = row_begin[s + 1] - row_begin[s],
            .fresh = args.sequences.start.as<int32_t>()[s] == 0});
  });
}

void CpuOps::DoGatedDeltaNet(const GatedDeltaNetArgs& args) {
  const int64_t heads = args.state.dim(1), key_dim = args.state.dim(2), value_dim = args.state.dim(3);
  const int64_t key_heads = args.num_key_heads, group = heads / key_heads;
  const int64_t channels = args.conv.dim(1), projection_stride = args.projection.dim(1);
  const SequenceKernels& kernels = SequenceKernelsOf(arithmetic_);
  const auto kernel = kernels.delta_net[ActIndex(args.out.dtype())];
  const int64_t num_sequences = args.sequences.num_sequences();
  // Neighbouring heads share pages, so a task takes several, as long as their states fit the second-level cache and
  // each thread has a few tasks.
  constexpr int64_t kStateBytes = 1 << 20;
  const int64_t by_cache = kStateBytes / (group * key_dim * value_dim * static_cast<int64_t>(sizeof(float)));
  const int64_t by_threads = num_sequences * key_heads / (2 * pool_.num_threads());
  const int64_t heads_per_task = std::clamp<int64_t>(std::min(by_cache, by_threads), 1, key_heads);
  const int64_t blocks = (key_heads + heads_per_task - 1) / heads_per_task;
  const int64_t scratch = kernels.delta_net_scratch(static_cast<int>(key_dim), static_cast<int>(value_dim),
                                                    static_cast<int>(heads_per_task * group));
  const int32_t* row_begin = args.sequences.row_begin.as<int32_t>();
  pool_.ParallelFor(num_sequences * blocks, [&](int64_t task, int thread) {
    const int64_t s = task / blocks, key_head = task % blocks * heads_per_task, head = key_head * group;
    const int64_t t = row_begin[s], slot = args.sequences.state_slot.as<int32_t>()[s];
    const float* conv = args.conv.as<float>() + t * channels;
    const float* z = args.projection.as<float>() + t * projection_stride + channels;
    kernel({.out = static_cast<std::byte*>(args.out.raw()) +
                   (t * heads + head) * value_dim * static_cast<int64_t>(SizeOf(args.out.dtype())),
            .out_stride = heads * value_dim,
            .out_bytes = static_cast<int>(SizeOf(args.out.dtype())),
            .state = args.state.as<float>() + (slot * heads + head) * key_dim * value_dim,
            .q = conv + key_head * key_dim,
            .k = conv + (key_heads + key_head) * key_dim,
            .v = conv + 2 * key_heads * key_dim + head * value_dim,
            .conv_stride = channels,
            .z = z + head * value_dim,
            .b = z + heads * value_dim + head,
            .a = z + heads * value_dim + heads + head,
            .projection_stride = projection_stride,
            .a_log = args.a_log.as<float>() + head,
            .dt_bias = args.dt_bias.as<float>() + head,
            .norm = args.norm.as<float>(),
            .num_rows = row_begin[s + 1] - t,
            .num_prompt_rows = args.sequences.num_prompt_rows.as<int32_t>()[s],
            .num_key_heads = static_cast<int>(std::min(heads_per_task, key_heads - key_head)),
            .group = static_cast<int>(group),
            .key_dim = static_cast<int>(key_dim),
            .value_dim = static_cast<int>(value_dim),
            .eps = args.eps,
            .sigmoid_gate = args.activation == GateActivation::kSigmoid,
            .fresh = args.sequences.start.as<int32_t>()[s] == 0,
            .scratch = scratch_[thread].Get<float>(scratch)});
  });
}

}  // namespace plumbline
