// SequenceKernels: the inner loops of every op that is not a linear, one table per arithmetic. A task struct holds plain
// pointers to one piece of work; the op (residual.cc, attention.cc, delta_net.cc, sampling.cc) cuts the work into tasks.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_features.h"
#include "kernels/tensor.h"

namespace plumbline {

inline constexpr int kNumActTypes = 3;  // tables of functions by type: [0] f32, [1] bf16, [2] f16

// out = (addend +) the tree over partials; slice floats apart. out may be addend.
struct SliceSum {
  float* out;
  const float* addend;  // or null
  const float* partials;
  int64_t slice;
  int num_partials;     // 1, 2, 4 or 8
};

struct RmsNormRowTask {
  void* out;
  const float* x;
  const float* weight;
  float weight_offset, eps;
};

// One head of one row of QkNormRope: norm, then rotation, each left out where it has no operand.
struct NormRopeTask {
  void* out;                // [H]
  const float* x;           // [H]
  const float* norm;        // [H] or null
  const float* cos;         // [rotary_half]
  const float* sin;
  float* scratch;           // [H]
  int head_dim, rotary_half;
  float norm_offset, eps;
};

// Attention of num_tokens consecutive rows of one sequence in the query heads of one KV head.
struct AttentionTask {
  void* out;                // [token, group, H]: token t at out + t * out_stride elements
  int64_t out_stride;
  const void* q;            // [token, group, H]
  int64_t q_stride;
  const void* k_cache;      // this KV head in block 0; blocks are block_stride elements apart
  const void* v_cache;
  int64_t block_stride;     // Nkv * B * H
  const int32_t* blocks;    // KV block of positions [j * B, (j + 1) * B)
  const float* gate;        // first head's gate in the first token's row, heads 2 H apart; or null
  int64_t gate_stride;      // from token to token
  int num_tokens, group, head_dim;
  int64_t first_position;
  float scale;
  void* scratch;            // attention_scratch_bytes
};

inline constexpr int kMaxAttentionRows = 128;  // num_tokens * group of a task

// A block of channels of one sequence in CausalConv. Pointers are those of the block's first channel.
struct ConvTask {
  float* out;               // rows out_stride apart
  int64_t out_stride;
  void* state;              // [num_channels, width - 1]
  int act_bytes;            // of an element of state and x
  const void* x;            // rows x_stride apart
  int64_t x_stride;
  const float* weight;      // [num_channels, width]
  int num_channels, width;
  int64_t num_rows;
  bool fresh;               // the sequence starts here: the state's content does not matter
};

inline constexpr int kMaxConvWidth = 8;
inline constexpr int kMaxConvChannels = 256;

// All rows of one sequence in one key head and its `group` value heads.
struct DeltaNetTask {
  void* out;                // the first value head, rows out_stride elements of out_bytes apart
  int64_t out_stride;       // Hv * Q
  int out_bytes;
  float* state;             // [value heads, P, Q]
  const float* q;           // rows conv_stride apart: [P]
  const float* k;           // [P]
  const float* v;           // [value heads, Q]
  int64_t conv_stride;
  const float* z;           // rows gates_stride apart: [value heads, Q]
  const float* b;           // [value heads]
  const float* a;           // [value heads]
  int64_t gates_stride;
  const float* a_log;       // [value heads]
  const float* dt_bias;     // [value heads]
  const float* norm;        // [Q]
  int64_t num_rows, num_prompt_rows;
  int group, key_dim, value_dim;
  float eps;
  bool sigmoid_gate;        // else SiLU
  bool fresh;
  float* scratch;           // delta_net_scratch floats; 64-byte aligned
};

// Both: out of the convolutions and q, k, v of the delta rule are scratch memory.
struct ConvDeltaNetTask {
  ConvTask q, k, v;
  DeltaNetTask delta;       // its scratch: conv_delta_net_scratch floats
};

struct SequenceKernels {
  void (*widen_row[kNumActTypes])(float* out, const void* in, int64_t n);
  void (*add_partials)(const SliceSum& sum, int64_t n);
  void (*rms_norm_row[kNumActTypes])(const RmsNormRowTask& task, int64_t n);
  void (*norm_rope[kNumActTypes])(const NormRopeTask& task);
  int64_t (*attention_scratch_bytes)(int num_rows, int head_dim);
  void (*attention[kNumActTypes])(const AttentionTask& task);
  void (*causal_conv[kNumActTypes])(const ConvTask& task);
  int64_t (*delta_net_scratch)(int key_dim, int value_dim, int group);
  void (*delta_net[kNumActTypes])(const DeltaNetTask& task);
  int64_t (*conv_delta_net_scratch)(int key_dim, int value_dim, int group, int width);
  void (*conv_delta_net[kNumActTypes])(const ConvDeltaNetTask& task);
  float (*max_of_row)(const float* x, int64_t n);
};

// One per file sequence_kernels_<instructions>.cc.
extern const SequenceKernels kScalarSequenceKernels;
extern const SequenceKernels kAvx2SequenceKernels;
extern const SequenceKernels kAvx512SequenceKernels;
extern const SequenceKernels kAmxSequenceKernels;

// REQUIRES: dtype is f32, bf16 or f16.
inline int ActIndex(DType dtype) { return dtype == DType::kF32 ? 0 : dtype == DType::kBf16 ? 1 : 2; }

inline const SequenceKernels& SequenceKernelsOf(CpuArithmetic arithmetic) {
  switch (arithmetic) {
    case CpuArithmetic::kScalarV1:
      return kScalarSequenceKernels;
    case CpuArithmetic::kAvx2V1:
      return kAvx2SequenceKernels;
    case CpuArithmetic::kAvx512Bf16V1:
      return kAvx512SequenceKernels;
    case CpuArithmetic::kAmxV1:
      return kAmxSequenceKernels;
  }
  return kScalarSequenceKernels;
}

}  // namespace plumbline
