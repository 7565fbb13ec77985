// The gated delta rule for all rows of one sequence in some neighbouring heads (arXiv:2412.06464), in f32.
// Prompt rows: the chunked form on kChunk rows. With G the running sum of log decays in the chunk, S the state before it:
//   R = diag(beta) (V - diag(e^G) K S);  (I + M) X = R, M_ij = beta_i (k_i . k_j) e^(G_i - G_j) below the diagonal
//   O = diag(e^G) Q S + (lower(Q K^T) . e^(G_i - G_j)) X;  S <- e^G_last S + K^T diag(e^(G_last - G)) X
// A row sums over earlier rows only, in ascending order, so a short chunk gives its rows the bits of a full one.
// Generated rows: the recurrence.
#pragma once

#include <math.h>

#include "kernels/cpu/flush_subnormals.h"
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
  float *kk, *qk, *weights;        // [kChunk, kChunkStride]: K K^T, Q K^T, and a masked, decayed copy of either
  float *x, *out;                  // [kChunk, value_stride]
  float* states;                   // [value heads of the task, padded P, value_stride]
  float *decay, *decay_low, *beta; // [kChunk]: G as the sum of two floats
  int64_t num_floats;
  int64_t state_size() const { return padded_key_dim * value_stride; }
};

inline int64_t DeltaNetScratchFloats(int key_dim, int value_dim, int num_heads) {
  return DeltaNetScratch(nullptr, key_dim, value_dim, num_heads).num_floats;
}

// y = x / sqrt(sum x^2 + 1e-6) * scale, zero up to the padding.
template <typename Simd>
void L2Normalize(float* y, const float* x, int n, float scale) {
  const auto factor = Simd::Set(1.0f / sqrtf(SumOfSquares<Simd>(x, n) + 1e-6f)), scales = Simd::Set(scale);
  for (int i = 0; i < n; i += 16) {
    Simd::Store(y + i, Simd::Mul(Simd::Mul(Simd::LoadN(x + i, Least(16, n - i)), factor), scales));
  }
}

inline float LogDecay(const DeltaNetTask& task, int64_t row, int head) {
  const float x = task.a[row * task.projection_stride + head] + task.dt_bias[head];
  return -expf(task.a_log[head]) * (x > 20.0f ? x : log1pf(expf(x)));
}

inline float Beta(const DeltaNetTask& task, int64_t row, int head) {
  return 1.0f / (1.0f + expf(-task.b[row * task.projection_stride + head]));
}

// out = norm * o * rsqrt(mean(o^2) + eps) * activation(z)
template <typename Simd, typename T>
void GatedNorm(const DeltaNetTask& task, int64_t row, int head, const float* o) {
  const int dim = task.value_dim;
  const float* z = task.z + row * task.projection_stride + head * dim;
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

// What the value heads of the chunk share: q, k and k transposed (zero up to the padding).
template <typename Simd>
void PrepareChunk(const DeltaNetTask& task, const DeltaNetScratch& s, int64_t first, int count) {
  const int dim = task.key_dim, padded = RoundUp(dim, 16);
  const float scale = 1.0f / sqrtf(static_cast<float>(dim));
  for (int i = 0; i < count; ++i) {
    L2Normalize<Simd>(s.q + i * s.key_stride, task.q + (first + i) * task.conv_stride, dim, scale);
    L2Normalize<Simd>(s.k + i * s.key_stride, task.k + (first + i) * task.conv_stride, dim, 1.0f);
  }
  for (int i = 0; i < count; i += 16) {
    for (int p = 0; p < padded; p += 16) {
      typename Simd::F lanes[16];
      for (int j = 0; j < 16; ++j) {
        lanes[j] = i + j < count ? Simd::Load(s.k + (i + j) * s.key_stride + p) : Simd::Zero();
      }
      Simd::Transpose(lanes);
      for (int j = 0; j < 16; ++j) Simd::Store(s.k_transposed + (p + j) * kChunkStride + i, lanes[j]);
    }
  }
}

// weights[i][j] = (beta_i) products[i][j] e^(G_i - G_j) for j < i + diagonal, zero elsewhere in the lower tiles.
template <typename Simd>
void DecayedWeights(const DeltaNetScratch& s, const float* products, const float* beta, int count, int diagonal) {
  for (int i = 0; i < count; ++i) {
    const auto high = Simd::Set(s.decay[i]), low = Simd::Set(s.decay_low[i]);
    const auto factor = Simd::Set(beta == nullptr ? 1.0f : -beta[i]);
    for (int j = 0; j < RoundUp(count, 16); j += 16) {
      auto weight = Simd::Zero();
      if (j < i + diagonal) {
        // G is carried in two floats: the difference of two large sums keeps its digits.
        const auto difference = Simd::Add(Simd::Sub(high, Simd::Load(s.decay + j)),
                                          Simd::Sub(low, Simd::Load(s.decay_low + j)));
        const auto product = Simd::Mul(factor, Simd::Load(products + i * kChunkStride + j));
        weight = Simd::FirstN(Simd::Mul(product, Simd::Exp(difference)), Least(16, i + diagonal - j), 0.0f);
      }
      Simd::Store(s.weights + i * kChunkStride + j, weight);
    }
  }
}

// x <- (I - W)^-1 x, W = s.weights strictly lower triangular: blocks of 16 rows, rows in order inside a block.
template <typename Simd>
void SolveUnitLower(const DeltaNetScratch& s, int count, int num_columns) {
  for (int block = 0; block < count; block += 16) {
    const int rows = Least(16, count - block);
    const float* w = s.weights + block * kChunkStride;
    if (block > 0) {
      Multiply<Simd>({.a = w, .a_stride = kChunkStride, .b = s.x, .b_stride = s.value_stride,
                      .c = s.x + block * s.value_stride, .c_stride = s.value_stride, .m = rows, .n = num_columns,
                      .k = block, .c_scale = 1});
    }
    for (int column = 0; column < num_columns; column += 16) {
      float* x = s.x + block * s.value_stride + column;
      typename Simd::F lanes[16];
      for (int i = 0; i < rows; ++i) lanes[i] = Simd::Load(x + i * s.value_stride);
      for (int j = 0; j + 1 < rows; ++j) {
        for (int i = j + 1; i < rows; ++i) {
          lanes[i] = Simd::Fma(Simd::Set(w[i * kChunkStride + block + j]), lanes[j], lanes[i]);
        }
      }
      for (int i = 0; i < rows; ++i) Simd::Store(x + i * s.value_stride, lanes[i]);
    }
  }
}

// The products of a chunk of `count` rows in f32.
template <typename Simd>
struct F32ChunkProducts {
  static void Begin() {}
  static void End() {}

  // kk = K K^T, qk = Q K^T, on and below the diagonal.
  static void KeyProducts(const DeltaNetTask& task, const DeltaNetScratch& s, int count) {
    SmallGemm product = {.a = s.k, .a_stride = s.key_stride, .b = s.k_transposed, .b_stride = kChunkStride,
                         .c = s.kk, .c_stride = kChunkStride, .m = count, .n = RoundUp(count, 16),
                         .k = task.key_dim, .c_is_lower = true};
    Multiply<Simd>(product);
    product.a = s.q;
    product.c = s.qk;
    Multiply<Simd>(product);
  }
  // x = K S, out = Q S; then S *= decay.
  static void ReadState(const DeltaNetTask& task, const DeltaNetScratch& s, float* state, float decay, int count) {
    SmallGemm read = {.a = s.k, .a_stride = s.key_stride, .b = state, .b_stride = s.value_stride, .c = s.x,
                      .c_stride = s.value_stride, .m = count, .n = RoundUp(task.value_dim, 16), .k = task.key_dim};
    Multiply<Simd>(read);
    read.a = s.q;
    read.c = s.out;
    Multiply<Simd>(read);
    const auto factor = Simd::Set(decay);
    for (int p = 0; p < task.key_dim; ++p) {
      float* row = state + p * s.value_stride;
      for (int c = 0; c < task.value_dim; c += 16) Simd::Store(row + c, Simd::Mul(factor, Simd::Load(row + c)));
    }
  }
  // out += weights x
  static void AddValues(const DeltaNetTask& task, const DeltaNetScratch& s, int count) {
    Multiply<Simd>({.a = s.weights, .a_stride = kChunkStride, .b = s.x, .b_stride = s.value_stride, .c = s.out,
                    .c_stride = s.value_stride, .m = count, .n = RoundUp(task.value_dim, 16), .k = count,
                    .c_scale = 1, .a_is_lower = true});
  }
  // S += K^T x
  static void UpdateState(const DeltaNetTask& task, const DeltaNetScratch& s, float* state, int count) {
    Multiply<Simd>({.a = s.k_transposed, .a_stride = kChunkStride, .b = s.x, .b_stride = s.value_stride, .c = state,
                    .c_stride = s.value_stride, .m = task.key_dim, .n = RoundUp(task.value_dim, 16), .k = count,
                    .c_scale = 1});
  }
};

template <typename Simd, typename T, typename Products>
void ChunkOfHead(const DeltaNetTask& task, const DeltaNetScratch& s, int64_t first, int count, int head) {
  const int dim = task.value_dim, columns = RoundUp(dim, 16);
  float* state = s.states + head * s.state_size();
  double decay = 0;
  for (int i = 0; i < count; ++i) {
    decay += LogDecay(task, first + i, head);
    s.decay[i] = static_cast<float>(decay);
    s.decay_low[i] = static_cast<float>(decay - s.decay[i]);
    s.beta[i] = Beta(task, first + i, head);
  }
  const float last_decay = Simd::MaxOf(Simd::Exp(Simd::Set(s.decay[count - 1])));
  Products::ReadState(task, s, state, last_decay, count);
  for (int i = 0; i < count; ++i) {
    const float* v = task.v + (first + i) * task.conv_stride + head * dim;
    const auto beta = Simd::Set(s.beta[i]), decayed = Simd::Exp(Simd::Set(s.decay[i]));
    float *x = s.x + i * s.value_stride, *out = s.out + i * s.value_stride;
    for (int c = 0; c < dim; c += 16) {
      const auto error = Simd::Sub(Simd::LoadN(v + c, Least(16, dim - c)), Simd::Mul(decayed, Simd::Load(x + c)));
      Simd::Store(x + c, Simd::Mul(beta, error));
      Simd::Store(out + c, Simd::Mul(decayed, Simd::Load(out + c)));
    }
  }
  DecayedWeights<Simd>(s, s.kk, s.beta, count, 0);
  SolveUnitLower<Simd>(s, count, columns);
  DecayedWeights<Simd>(s, s.qk, nullptr, count, 1);
  Products::AddValues(task, s, count);
  for (int i = 0; i < count; ++i) {
    GatedNorm<Simd, T>(task, first + i, head, s.out + i * s.value_stride);
    const float rest = (s.decay[count - 1] - s.decay[i]) + (s.decay_low[count - 1] - s.decay_low[i]);
    const auto factor = Simd::Exp(Simd::Set(rest));
    float* x = s.x + i * s.value_stride;
    for (int c = 0; c < columns; c += 16) Simd::Store(x + c, Simd::Mul(factor, Simd::Load(x + c)));
  }
  Products::UpdateState(task, s, state, count);
}

// The states of the group, from the task into scratch and back.
template <typename Simd>
void LoadStates(const DeltaNetTask& task, const DeltaNetScratch& s) {
  for (int64_t row = 0; row < int64_t{task.group} * task.key_dim; ++row) {
    float* to = s.states + row / task.key_dim * s.state_size() + row % task.key_dim * s.value_stride;
    for (int c = 0; c < task.value_dim; c += 16) {
      const int n = Least(16, task.value_dim - c);
      Simd::Store(to + c, task.fresh ? Simd::Zero() : Simd::LoadN(task.state + row * task.value_dim + c, n));
    }
  }
}

template <typename Simd>
void StoreStates(const DeltaNetTask& task, const DeltaNetScratch& s) {
  for (int64_t row = 0; row < int64_t{task.group} * task.key_dim; ++row) {
    const float* from = s.states + row / task.key_dim * s.state_size() + row % task.key_dim * s.value_stride;
    for (int c = 0; c < task.value_dim; c += 16) {
      Simd::StoreN(task.state + row * task.value_dim + c, Simd::Load(from + c), Least(16, task.value_dim - c));
    }
  }
}

struct RecurrentRow {
  const float *q, *k, *v;    // q, k normalised
  float decay, beta, qk;     // e^g, beta, q . k
  int key_dim, value_dim;
};

// Columns [0, 16 * kVectors) of one step, of which num_columns exist: S^T k and S^T q in one pass over S, then the
// update. o = S'^T q = e^g S^T q + (q . k) d.
template <typename Simd, int kVectors>
void RecurrentColumns(const RecurrentRow& row, float* state, float* out, int column, int num_columns) {
  using F = typename Simd::F;
  const auto load = [&](const float* p, int j) {
    return num_columns - 16 * j >= 16 ? Simd::Load(p + 16 * j) : Simd::LoadN(p + 16 * j, num_columns - 16 * j);
  };
  F read[kVectors], answer[kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) read[j] = answer[j] = Simd::Zero();
  const float* from = state + column;
  for (int p = 0; p < row.key_dim; ++p, from += row.value_dim) {
    const F k = Simd::Set(row.k[p]), q = Simd::Set(row.q[p]);
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const F lanes = load(from, j);
      read[j] = Simd::Fma(lanes, k, read[j]);
      answer[j] = Simd::Fma(lanes, q, answer[j]);
    }
  }
  const F decay = Simd::Set(row.decay), beta = Simd::Set(row.beta), qk = Simd::Set(row.qk);
  F delta[kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) {
    const F error = Simd::Sub(load(row.v + column, j), Simd::Mul(decay, read[j]));
    delta[j] = Simd::Mul(beta, error);
    Simd::Store(out + column + 16 * j, Simd::Fma(qk, delta[j], Simd::Mul(decay, answer[j])));
  }
  float* to = state + column;
  for (int p = 0; p < row.key_dim; ++p, to += row.value_dim) {
    const F k = Simd::Set(row.k[p]);
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const F lanes = Simd::Fma(k, delta[j], Simd::Mul(decay, load(to, j)));
      if (num_columns - 16 * j >= 16) {
        Simd::Store(to + 16 * j, lanes);
      } else {
        Simd::StoreN(to + 16 * j, lanes, num_columns - 16 * j);
      }
    }
  }
}

template <typename Simd, typename T>
void RecurrentStep(const DeltaNetTask& task, const DeltaNetScratch& s, int64_t row) {
  constexpr int kColumns = 16 * Simd::kColumnVectors;
  const int dim = task.value_dim;
  L2Normalize<Simd>(s.q, task.q + row * task.conv_stride, task.key_dim, 1.0f / sqrtf(static_cast<float>(task.key_dim)));
  L2Normalize<Simd>(s.k, task.k + row * task.conv_stride, task.key_dim, 1.0f);
  typename Simd::F qk = Simd::Zero();
  for (int p = 0; p < task.key_dim; p += 16) qk = Simd::Fma(Simd::Load(s.q + p), Simd::Load(s.k + p), qk);
  for (int head = 0; head < task.group; ++head) {
    const RecurrentRow step = {.q = s.q, .k = s.k, .v = task.v + row * task.conv_stride + head * dim,
                               .decay = expf(LogDecay(task, row, head)), .beta = Beta(task, row, head),
                               .qk = Simd::Sum(qk), .key_dim = task.key_dim, .value_dim = dim};
    float* state = task.state + static_cast<int64_t>(head) * task.key_dim * dim;
    int column = 0;
    for (; column + kColumns <= dim; column += kColumns) {
      RecurrentColumns<Simd, Simd::kColumnVectors>(step, state, s.out, column, kColumns);
    }
    for (; column < dim; column += 16) {
      RecurrentColumns<Simd, 1>(step, state, s.out, column, Least(16, dim - column));
    }
    GatedNorm<Simd, T>(task, row, head, s.out);
  }
}

// The part of a task that belongs to its key head h.
inline DeltaNetTask TaskOfKeyHead(DeltaNetTask task, int h) {
  const int64_t head = static_cast<int64_t>(h) * task.group, values = head * task.value_dim;
  task.out = static_cast<char*>(task.out) + values * task.out_bytes;
  task.state += values * task.key_dim;
  task.q += h * task.key_dim;
  task.k += h * task.key_dim;
  task.v += values;
  task.z += values;
  task.b += head;
  task.a += head;
  task.a_log += head;
  task.dt_bias += head;
  return task;
}

template <typename Simd, typename T, typename Products>
void PromptRows(const DeltaNetTask& task, const DeltaNetScratch& scratch) {
  Products::Begin();
  const auto scratch_of = [&](int h) {
    DeltaNetScratch s = scratch;
    s.states += h * task.group * s.state_size();
    return s;
  };
  for (int h = 0; h < task.num_key_heads; ++h) LoadStates<Simd>(TaskOfKeyHead(task, h), scratch_of(h));
  for (int64_t first = 0; first < task.num_prompt_rows; first += kChunk) {
    const int64_t rest = task.num_prompt_rows - first;
    const int count = rest < kChunk ? static_cast<int>(rest) : kChunk;
    // The heads of a row lie side by side: taking all of them at a chunk touches each page once.
    for (int h = 0; h < task.num_key_heads; ++h) {
      const DeltaNetTask part = TaskOfKeyHead(task, h);
      const DeltaNetScratch s = scratch_of(h);
      PrepareChunk<Simd>(part, s, first, count);
      Products::KeyProducts(part, s, count);
      for (int head = 0; head < task.group; ++head) ChunkOfHead<Simd, T, Products>(part, s, first, count, head);
    }
  }
  for (int h = 0; h < task.num_key_heads; ++h) StoreStates<Simd>(TaskOfKeyHead(task, h), scratch_of(h));
  Products::End();
}

template <typename Simd, typename T, typename Products = F32ChunkProducts<Simd>>
void DeltaNetKernel(const DeltaNetTask& task) {
  const FlushSubnormals flush;
  const DeltaNetScratch s(task.scratch, task.key_dim, task.value_dim, task.num_key_heads * task.group);
  if (task.num_prompt_rows > 0) {
    PromptRows<Simd, T, Products>(task, s);
  } else if (task.fresh) {
    const int64_t size = static_cast<int64_t>(task.num_key_heads) * task.group * task.key_dim * task.value_dim;
    for (int64_t i = 0; i < size; ++i) task.state[i] = 0;
  }
  for (int h = 0; h < task.num_key_heads; ++h) {
    const DeltaNetTask part = TaskOfKeyHead(task, h);
    for (int64_t row = task.num_prompt_rows; row < task.num_rows; ++row) RecurrentStep<Simd, T>(part, s, row);
  }
}

}  // namespace
}  // namespace plumbline
