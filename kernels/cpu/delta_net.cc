// CausalConv, GatedDeltaNet, and both in one pass over a few rows at a time.
#include <algorithm>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/sequence_kernels.h"

namespace plumbline {
namespace {

// Channels [channel, channel + num_channels) of sequence s; out is the caller's.
ConvTask TaskOfChannels(const CausalConvArgs& args, int64_t s, int64_t channel, int64_t num_channels) {
  const int64_t channels = args.state.dim(1), width = args.weight.dim(1);
  const int32_t* row_begin = args.sequences.row_begin.as<int32_t>();
  const int64_t slot = args.sequences.state_slot.as<int32_t>()[s];
  return {.state = At(args.state, (slot * channels + channel) * (width - 1)),
          .act_bytes = static_cast<int>(SizeOf(args.state.dtype())),
          .x = args.x.At(row_begin[s], channel),
          .x_stride = args.x.row_stride(),
          .weight = args.weight.as<float>() + channel * width,
          .num_channels = static_cast<int>(num_channels),
          .width = static_cast<int>(width),
          .num_rows = row_begin[s + 1] - row_begin[s],
          .fresh = args.sequences.start.as<int32_t>()[s] == 0};
}

// The sizes of a call, and its tasks: a key head of one sequence with its value heads.
class DeltaNetHeads {
 public:
  explicit DeltaNetHeads(const GatedDeltaNetArgs& args)
      : num_key_heads(args.num_key_heads),
        num_heads(args.state.dim(1)),
        group(num_heads / num_key_heads),
        key_dim(args.state.dim(2)),
        value_dim(args.state.dim(3)),
        args_(args) {}

  const int64_t num_key_heads, num_heads, group, key_dim, value_dim;

  int64_t num_tasks() const { return args_.sequences.num_sequences() * num_key_heads; }

  // All rows of sequence s in a key head. q, k, v and scratch are the caller's.
  DeltaNetTask Task(int64_t s, int64_t key_head) const {
    const int64_t head = key_head * group;
    const int64_t t = args_.sequences.row_begin.as<int32_t>()[s];
    const int64_t slot = args_.sequences.state_slot.as<int32_t>()[s];
    const int64_t gates_stride = args_.gates.dim(1);
    const float* z = args_.gates.as<float>() + t * gates_stride;
    return {.out = args_.out.At(t, head * value_dim),
            .out_stride = args_.out.row_stride(),
            .out_bytes = static_cast<int>(SizeOf(args_.out.dtype())),
            .state = args_.state.as<float>() + (slot * num_heads + head) * key_dim * value_dim,
            .z = z + head * value_dim,
            .b = z + num_heads * value_dim + head,
            .a = z + num_heads * value_dim + num_heads + head,
            .gates_stride = gates_stride,
            .a_log = args_.a_log.as<float>() + head,
            .dt_bias = args_.dt_bias.as<float>() + head,
            .norm = args_.norm.as<float>(),
            .num_rows = args_.sequences.row_begin.as<int32_t>()[s + 1] - t,
            .num_prompt_rows = args_.sequences.num_prompt_rows.as<int32_t>()[s],
            .group = static_cast<int>(group),
            .key_dim = static_cast<int>(key_dim),
            .value_dim = static_cast<int>(value_dim),
            .eps = args_.eps,
            .sigmoid_gate = args_.activation == GateActivation::kSigmoid,
            .fresh = args_.sequences.start.as<int32_t>()[s] == 0};
  }

 private:
  const GatedDeltaNetArgs& args_;
};

}  // namespace

void CpuOps::DoCausalConv(const CausalConvArgs& args) {
  const int64_t channels = args.out.dim(1);
  PL_CHECK(args.weight.dim(1) <= kMaxConvWidth);
  const int64_t blocks = (channels + kMaxConvChannels - 1) / kMaxConvChannels;
  const auto kernel = SequenceKernelsOf(arithmetic_).causal_conv[ActIndex(args.state.dtype())];
  pool_.ParallelFor(args.sequences.num_sequences() * blocks, [&](int64_t task, int) {
    const int64_t s = task / blocks, channel = task % blocks * kMaxConvChannels;
    ConvTask conv = TaskOfChannels(args, s, channel, std::min<int64_t>(kMaxConvChannels, channels - channel));
    conv.out = args.out.as<float>() + args.sequences.row_begin.as<int32_t>()[s] * channels + channel;
    conv.out_stride = channels;
    kernel(conv);
  });
}

void CpuOps::DoGatedDeltaNet(const GatedDeltaNetArgs& args) {
  const DeltaNetHeads heads(args);
  const SequenceKernels& kernels = SequenceKernelsOf(arithmetic_);
  const auto kernel = kernels.delta_net[ActIndex(args.out.dtype())];
  const int64_t channels = args.conv.dim(1), key_channels = heads.num_key_heads * heads.key_dim;
  const int64_t scratch = kernels.delta_net_scratch(
      static_cast<int>(heads.key_dim), static_cast<int>(heads.value_dim), static_cast<int>(heads.group));
  pool_.ParallelFor(heads.num_tasks(), [&](int64_t index, int thread) {
    const int64_t s = index / heads.num_key_heads, key_head = index % heads.num_key_heads;
    DeltaNetTask task = heads.Task(s, key_head);
    const float* conv = args.conv.as<float>() + args.sequences.row_begin.as<int32_t>()[s] * channels;
    task.q = conv + key_head * heads.key_dim;
    task.k = conv + key_channels + key_head * heads.key_dim;
    task.v = conv + 2 * key_channels + key_head * heads.group * heads.value_dim;
    task.conv_stride = channels;
    task.scratch = scratch_[thread].Get<float>(scratch);
    kernel(task);
  });
}

void CpuOps::DoConvGatedDeltaNet(const ConvGatedDeltaNetArgs& args) {
  const int64_t width = args.conv.weight.dim(1);
  PL_CHECK(width <= kMaxConvWidth);
  const DeltaNetHeads heads(args.delta);
  const SequenceKernels& kernels = SequenceKernelsOf(arithmetic_);
  const auto kernel = kernels.conv_delta_net[ActIndex(args.delta.out.dtype())];
  const int64_t values = heads.group * heads.value_dim, key_channels = heads.num_key_heads * heads.key_dim;
  const int64_t scratch =
      kernels.conv_delta_net_scratch(static_cast<int>(heads.key_dim), static_cast<int>(heads.value_dim),
                                     static_cast<int>(heads.group), static_cast<int>(width));
  pool_.ParallelFor(heads.num_tasks(), [&](int64_t index, int thread) {
    const int64_t s = index / heads.num_key_heads, key_head = index % heads.num_key_heads;
    ConvDeltaNetTask task = {
        .q = TaskOfChannels(args.conv, s, key_head * heads.key_dim, heads.key_dim),
        .k = TaskOfChannels(args.conv, s, key_channels + key_head * heads.key_dim, heads.key_dim),
        .v = TaskOfChannels(args.conv, s, 2 * key_channels + key_head * values, values),
        .delta = heads.Task(s, key_head)};
    task.delta.scratch = scratch_[thread].Get<float>(scratch);
    kernel(task);
  });
}

}  // namespace plumbline
