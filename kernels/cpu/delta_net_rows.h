// What both forms of the gated delta rule do to single rows, and the scratch memory of a task.
#pragma once

#include <math.h>

#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/small_gemm.h"

namespace plumbline {
namespace {

inline constexpr int kChunk = 64;  // kChunkTokens
inline constexpr int kChunkStride = kChunk + 16;

// Rows are padded to a multiple of 16 floats, and by 16 more so that equal columns do not meet in one cache set.
struct DeltaNetScratch {
  DeltaNetScratch(float* memory, int key_dim, int value_dim, int num_heads)
      : padded_key_dim(RoundUp(key_dim, 16)),
        key_stride(padded_key_dim + 16),
        value_stride(RoundUp(value_dim, 16) + 16) {
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* at = memory + used;
      used += RoundUp(count, 16);
      return at;
    };
    q = take(kChunk * key_stride);
    k = take(kChunk * key_stride);
    k_transposed = take(padded_key_dim * kChunkStride);
    kk = take(kChunk * kChunkStride);
    qk = take(kChunk * kChunkStride);
    weights = take(kChunk * kChunkStride);
    value_weights = take(kChunk * kChunkStride);
    x = take(kChunk * value_stride);
    out = take(kChunk * value_stride);
    states = take(num_heads * state_size());
    decay = take(kChunk);
    decay_low = take(kChunk);
    beta = take(kChunk);
    num_floats = used;
  }
  int64_t padded_key_dim, key_stride, value_stride;
  float *q, *k;                    // [kChunk, key_stride] normalised
  float* k_transposed;             // [P, kChunkStride]
  float *kk, *qk;                  // [kChunk, kChunkStride]: K K^T, Q K^T
  float *weights, *value_weights;  // their masked, decayed copies
  float *x, *out;                  // [kChunk, value_stride]
  float* states;                   // [value heads of the task, padded P, value_stride]
  float *decay, *decay_low, *beta; // [kChunk]: G as the sum of two floats
  int64_t num_floats;
  int64_t state_size() const { return padded_key_dim * value_stride; }
  float* state(int head) const { return states + head * state_size(); }
};

inline int64_t DeltaNetScratchFloats(int key_dim, int value_dim, int num_heads) {
  return DeltaNetScratch(nullptr, key_dim, value_dim, num_heads).num_floats;
}

// x / sqrt(sum x^2 + 1e-6) * scale, zero up to the padding: store(i, lanes) for every 16.
template <typename Simd, typename Store>
void L2Normalize(const float* x, int n, float scale, const Store& store) {
  const auto factor = Simd::Set(1.0f / sqrtf(SumOfSquares<Simd>(x, n) + 1e-6f)), scales = Simd::Set(scale);
  for (int i = 0; i < n; i += 16) {
    store(i, Simd::Mul(Simd::Mul(Simd::LoadN(x + i, Least(16, n - i)), factor), scales));
  }
}
template <typename Simd>
void L2Normalize(float* y, const float* x, int n, float scale) {
  L2Normalize<Simd>(x, n, scale, [y](int i, typename Simd::F lanes) { Simd::Store(y + i, lanes); });
}

// log(1 + e^x) = max(x, 0) + 2 atanh(t), t = y / (2 + y) <= 1/3, y = e^-|x|; the series of atanh ends below 1e-9.
template <typename Simd>
typename Simd::F Softplus(typename Simd::F x) {
  const auto minus = Simd::Sub(Simd::Zero(), x);
  const auto y = Simd::Exp(Simd::Sub(Simd::Zero(), Simd::Max(x, minus)));
  const auto t = Simd::Div(y, Simd::Add(Simd::Set(2.0f), y)), square = Simd::Mul(t, t);
  auto series = Simd::Set(1.0f / 17);
#pragma GCC unroll 8
  for (int n = 15; n >= 1; n -= 2) series = Simd::Fma(series, square, Simd::Set(1.0f / static_cast<float>(n)));
  return Simd::Add(Simd::Max(x, Simd::Zero()), Simd::Mul(Simd::Add(t, t), series));
}

// beta = sigmoid(b) and the log decays -exp(a_log) softplus(a + dt_bias) of a head at rows [first, first + count),
// count <= kChunk; both arrays are kChunk floats.
template <typename Simd>
void GatesOfHead(const DeltaNetTask& task, int64_t first, int count, int head, float* log_decay, float* beta) {
  const auto rate = Simd::Exp(Simd::Set(task.a_log[head])), bias = Simd::Set(task.dt_bias[head]);
  for (int i = 0; i < count; ++i) {
    const int64_t at = (first + i) * task.gates_stride + head;
    log_decay[i] = task.a[at];
    beta[i] = task.b[at];
  }
  for (int i = 0; i < count; i += 16) {
    const int n = Least(16, count - i);
    const auto softplus = Softplus<Simd>(Simd::Add(Simd::LoadN(log_decay + i, n), bias));
    Simd::Store(log_decay + i, Simd::Sub(Simd::Zero(), Simd::Mul(rate, softplus)));
    Simd::Store(beta + i, Simd::Sigmoid(Simd::LoadN(beta + i, n)));
  }
}

// out = norm * o * rsqrt(mean(o^2) + eps) * activation(z)
template <typename Simd, typename T>
void GatedNorm(const DeltaNetTask& task, int64_t row, int head, const float* o) {
  const int dim = task.value_dim;
  const float* z = task.z + row * task.gates_stride + head * dim;
  T* out = static_cast<T*>(task.out) + row * task.out_stride + head * dim;
  const auto factor = Simd::Set(1.0f / sqrtf(SumOfSquares<Simd>(o, dim) / static_cast<float>(dim) + task.eps));
  for (int i = 0; i < dim; i += 16) {
    const int n = Least(16, dim - i);
    const auto gate = Simd::LoadN(z + i, n);
    const auto activation = task.sigmoid_gate ? Simd::Sigmoid(gate) : Simd::Silu(gate);
    const auto normed = Simd::Mul(Simd::LoadN(task.norm + i, n), Simd::Mul(Simd::LoadN(o + i, n), factor));
    Simd::StoreN(out + i, Simd::Mul(normed, activation), n);
  }
}

}  // namespace
}  // namespace plumbline
