// RopeTable: a thread per angle, in f64, once per step.
// QkNormRope: a warp per (row, head) of q, k and v, all in f32; limited by bytes (it reads qkv once from memory, again from
// L1, and writes q, k and v in 16 bits): 80 % of bandwidth expected from a few hundred rows on. The sum of squares: lane l
// takes the elements of its l-th, l + 32-th, ... group of kWidth in ascending order, then WarpSum; a function of H and
// rotary_dim alone.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr int kTableThreads = 128;
constexpr int kWarps = 4;  // of a block of QkNormRope

__global__ void RopeTableKernel(float* cos_table, float* sin_table, const int32_t* positions, const float* inv_freq,
                                int64_t half, int64_t count, float attention_factor) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float rounded = static_cast<float>(positions[i / half]) * inv_freq[i % half];
  const double angle = rounded;
  cos_table[i] = static_cast<float>(cos(angle)) * attention_factor;
  sin_table[i] = static_cast<float>(sin(angle)) * attention_factor;
}

// kWidth elements that are read and written at once.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Group {
  T x[kWidth];
};
template <int kWidth>
PLUMBLINE_DEVICE Group<float, kWidth> Load(const float* from) {
  return *reinterpret_cast<const Group<float, kWidth>*>(from);
}
template <typename T, int kWidth>
PLUMBLINE_DEVICE void Store(T* to, const Group<float, kWidth>& values) {
  Group<T, kWidth> rounded;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) rounded.x[j] = FromF32<T>(values.x[j]);
  *reinterpret_cast<Group<T, kWidth>*>(to) = rounded;
}

template <typename T>
struct Heads {
  T* q;
  T* k_cache;
  T* v_cache;
  const float* qkv;     // [T, width]
  const float* q_norm;  // or null
  const float* k_norm;  // or null
  const float* cos;     // [T, half]
  const float* sin;     // [T, half]
  const int32_t* slots;
  int64_t rows, width;
  int heads, kv_heads, head_dim, half, q_stride;
  float norm_offset, eps;
};

// A head's values: its norm and its rotation.
struct HeadValues {
  const float* x;       // [head_dim]
  const float* weight;  // [head_dim], or null
  float factor;         // of the norm
  float norm_offset;

  template <int kWidth>
  PLUMBLINE_DEVICE Group<float, kWidth> Normed(int i) const {
    Group<float, kWidth> y = Load<kWidth>(x + i);
    if (weight == nullptr) return y;
    const Group<float, kWidth> w = Load<kWidth>(weight + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) y.x[j] = y.x[j] * factor * (norm_offset + w.x[j]);
    return y;
  }
};

template <typename T, int kWidth>
PLUMBLINE_DEVICE void NormAndRotate(T* out, const float* x, const float* weight, const Heads<T>& args, int64_t row) {
  constexpr int kStep = kWarpSize * kWidth;
  const int first = static_cast<int>(threadIdx.x) % kWarpSize * kWidth, half = args.half;
  HeadValues head = {x, weight, 1.0f, args.norm_offset};
  if (weight != nullptr) {
    float squares = 0;
#pragma unroll 2
    for (int i = first; i < args.head_dim; i += kStep) {
      const Group<float, kWidth> y = Load<kWidth>(x + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) squares = fmaf(y.x[j], y.x[j], squares);
    }
    head.factor = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(args.head_dim) + args.eps);
  }
#pragma unroll 1
  for (int i = first; i < half; i += kStep) {
    Group<float, kWidth> a = head.template Normed<kWidth>(i), b = head.template Normed<kWidth>(i + half);
    const Group<float, kWidth> c = Load<kWidth>(args.cos + row * half + i), s = Load<kWidth>(args.sin + row * half + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float low = a.x[j], high = b.x[j];
      a.x[j] = low * c.x[j] - high * s.x[j];
      b.x[j] = high * c.x[j] + low * s.x[j];
    }
    Store<T>(out + i, a);
    Store<T>(out + i + half, b);
  }
#pragma unroll 2
  for (int i = 2 * half + first; i < args.head_dim; i += kStep) Store<T>(out + i, head.template Normed<kWidth>(i));
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kWarps* kWarpSize) QkNormRopeKernel(Heads<T> args) {
  const int heads_of_row = args.heads + 2 * args.kv_heads;
  const int task = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / kWarpSize);
  const int64_t row = task / heads_of_row;
  if (row >= args.rows) return;  // the whole warp
  const int head = task % heads_of_row, dim = args.head_dim;
  const float* values = args.qkv + row * args.width;
  if (head < args.heads) {
    NormAndRotate<T, kWidth>(args.q + (row * args.heads + head) * dim, values + head * args.q_stride, args.q_norm, args,
                             row);
    return;
  }
  const bool is_key = head < args.heads + args.kv_heads;
  const int kv_head = head - args.heads - (is_key ? 0 : args.kv_heads);
  const int64_t slot = args.slots[row];
  const int64_t at = ((slot / kBlockTokens * args.kv_heads + kv_head) * kBlockTokens + slot % kBlockTokens) * dim;
  const float* x = values + args.heads * args.q_stride + (head - args.heads) * dim;
  if (is_key) {
    NormAndRotate<T, kWidth>(args.k_cache + at, x, args.k_norm, args, row);
  } else {
    for (int i = threadIdx.x % kWarpSize * kWidth; i < dim; i += kWarpSize * kWidth)
      Store<T>(args.v_cache + at + i, Load<kWidth>(x + i));
  }
}

}  // namespace

void CudaOps::DoRopeTable(const RopeTableArgs& args) {
  const int64_t half = args.inv_freq.dim(0), count = args.positions.dim(0) * half;
  if (count == 0) return;
  Launch({BlocksFor(count, kTableThreads), kTableThreads, 0, stream()}, RopeTableKernel, args.cos.as<float>(),
         args.sin.as<float>(), args.positions.as<int32_t>(), args.inv_freq.as<float>(), half, count, args.attention_factor);
}

void CudaOps::DoQkNormRope(const QkNormRopeArgs& args) {
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), kv_heads = args.k_cache.dim(1), dim = args.q.dim(2);
  const int64_t half = args.cos.dim(1);
  VisitFloat(args.q.dtype(), [&]<typename T>() {
    const Heads<T> all = {.q = Data<T>(args.q),
                          .k_cache = Data<T>(args.k_cache),
                          .v_cache = Data<T>(args.v_cache),
                          .qkv = args.qkv.as<float>(),
                          .q_norm = Data<float>(args.q_norm),
                          .k_norm = Data<float>(args.k_norm),
                          .cos = Data<float>(args.cos),
                          .sin = Data<float>(args.sin),
                          .slots = Data<int32_t>(args.slots),
                          .rows = rows,
                          .width = args.qkv.dim(1),
                          .heads = static_cast<int>(heads),
                          .kv_heads = static_cast<int>(kv_heads),
                          .head_dim = static_cast<int>(dim),
                          .half = static_cast<int>(half),
                          .q_stride = static_cast<int>(args.gated ? 2 * dim : dim),
                          .norm_offset = args.norm_offset,
                          .eps = args.eps};
    const LaunchShape shape = {BlocksFor(rows * (heads + 2 * kv_heads), kWarps), kWarps * kWarpSize, 0, stream()};
    if (dim % 4 == 0 && half % 4 == 0) {
      Launch(shape, QkNormRopeKernel<T, 4>, all);
    } else {
      Launch(shape, QkNormRopeKernel<T, 1>, all);
    }
  });
}

}  // namespace plumbline
