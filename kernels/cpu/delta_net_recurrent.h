// One generated row of the gated delta rule: the recurrence of arXiv:2412.06464, with two passes over the state.
#pragma once

#include "kernels/cpu/delta_net_rows.h"

namespace plumbline {
namespace {

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
    alignas(64) float log_decay[kChunk], beta[kChunk];
    GatesOfHead<Simd>(task, row, 1, head, log_decay, beta);
    const RecurrentRow step = {.q = s.q, .k = s.k, .v = task.v + row * task.conv_stride + head * dim,
                               .decay = Simd::MaxOf(Simd::Exp(Simd::Set(log_decay[0]))), .beta = beta[0],
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

}  // namespace
}  // namespace plumbline
