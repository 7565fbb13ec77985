// CausalConv, GatedDeltaNet. The prompt's chunked form follows arXiv:2406.06484 (WY representation) with the gates of
// arXiv:2412.06464.
#include <algorithm>
#include <cmath>

#include "kernels/reference/reference.h"

namespace plumbline {

using namespace reference;  // NOLINT

void ReferenceOps::DoCausalConv(const CausalConvArgs& args) {
  const int64_t channels = args.out.dim(1), width = args.weight.dim(1);
  for (int64_t s = 0; s < args.sequences.num_sequences(); ++s) {
    const int64_t begin = args.sequences.row_begin.as<int32_t>()[s];
    const int64_t end = args.sequences.row_begin.as<int32_t>()[s + 1];
    const int64_t slot = args.sequences.state_slot.as<int32_t>()[s];
    const bool fresh = args.sequences.start.as<int32_t>()[s] == 0;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t state = (slot * channels + c) * (width - 1);
      std::vector<float> inputs;  // history, then this step's
      for (int64_t j = 0; j < width - 1; ++j) inputs.push_back(fresh ? 0.0f : Load(args.state, state + j));
      for (int64_t t = begin; t < end; ++t) {
        inputs.push_back(Load(args.x, t * args.x.row_stride() + c));
        float sum = 0;
        for (int64_t j = 0; j < width; ++j) {
          sum += args.weight.as<float>()[c * width + j] * inputs[t - begin + j];
        }
        args.out.as<float>()[t * channels + c] = Silu(sum);
      }
      for (int64_t j = 0; j < width - 1; ++j) {
        Store(args.state, state + j, inputs[inputs.size() - (width - 1) + j]);
      }
    }
  }
}

namespace {

// The inputs of one value head at one row, normalised and gated.
struct HeadRow {
  std::vector<float> q, k, v;  // [P], [P], [Q]
  float beta = 0;
  float g = 0;  // log decay, <= 0
};

std::vector<float> L2Normalized(const float* x, int64_t size) {
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum + 1e-6f);
  std::vector<float> y(size);
  for (int64_t i = 0; i < size; ++i) y[i] = x[i] * scale;
  return y;
}

float Softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

class DeltaHead {
 public:
  DeltaHead(const GatedDeltaNetArgs& args, int64_t head)
      : args_(args), head_(head), key_dim_(args.state.dim(2)), value_dim_(args.state.dim(3)) {}

  HeadRow RowAt(int64_t t) const {
    const int64_t heads = args_.state.dim(1), key_width = args_.num_key_heads * key_dim_;
    const int64_t key_head = head_ / (heads / args_.num_key_heads);
    const float* conv = args_.conv.as<float>() + t * args_.conv.dim(1);
    const float* gates = args_.gates.as<float>() + t * args_.gates.dim(1) + heads * value_dim_;
    HeadRow row;
    row.q = L2Normalized(conv + key_head * key_dim_, key_dim_);
    const float scale = 1.0f / std::sqrt(static_cast<float>(key_dim_));
    for (float& value : row.q) value *= scale;
    row.k = L2Normalized(conv + key_width + key_head * key_dim_, key_dim_);
    const float* v = conv + 2 * key_width + head_ * value_dim_;
    row.v.assign(v, v + value_dim_);
    row.beta = Sigmoid(gates[head_]);
    row.g = -std::exp(args_.a_log.as<float>()[head_]) *
            Softplus(gates[heads + head_] + args_.dt_bias.as<float>()[head_]);
    return row;
  }

  // The recurrence for one row. S: [P, Q].
  void Recurrent(float* S, int64_t t) const {
    const HeadRow row = RowAt(t);
    const float decay = std::exp(row.g);
    std::vector<float> delta(value_dim_), out(value_dim_);
    for (int64_t j = 0; j < value_dim_; ++j) {
      float read = 0;
      for (int64_t i = 0; i < key_dim_; ++i) {
        S[i * value_dim_ + j] *= decay;
        read += S[i * value_dim_ + j] * row.k[i];
      }
      delta[j] = row.beta * (row.v[j] - read);
      for (int64_t i = 0; i < key_dim_; ++i) {
        S[i * value_dim_ + j] += row.k[i] * delta[j];
        out[j] += S[i * value_dim_ + j] * row.q[i];
      }
    }
    StoreNormed(t, out);
  }

  // The chunked form for rows [first, first + count), count <= kChunkTokens, all inside one chunk of the grid.
  void Chunk(float* S, int64_t first, int64_t count) const {
    std::vector<HeadRow> rows;
    std::vector<float> G(count);  // inclusive cumulative log decay
    for (int64_t i = 0; i < count; ++i) {
      rows.push_back(RowAt(first + i));
      G[i] = (i > 0 ? G[i - 1] : 0.0f) + rows[i].g;
    }
    // New values: row i solves (I + M) X = diag(beta) (V - diag(e^G) K S), M strictly lower triangular,
    // M_ij = beta_i (k_i . k_j) e^(G_i - G_j).
    std::vector<std::vector<float>> fresh(count, std::vector<float>(value_dim_));
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < value_dim_; ++c) {
        float read = 0;
        for (int64_t p = 0; p < key_dim_; ++p) read += rows[i].k[p] * S[p * value_dim_ + c];
        fresh[i][c] = rows[i].beta * (rows[i].v[c] - std::exp(G[i]) * read);
      }
      for (int64_t j = 0; j < i; ++j) {
        const float m = rows[i].beta * Dot(rows[i].k, rows[j].k) * std::exp(G[i] - G[j]);
        for (int64_t c = 0; c < value_dim_; ++c) fresh[i][c] -= m * fresh[j][c];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      std::vector<float> out(value_dim_);
      for (int64_t c = 0; c < value_dim_; ++c) {
        float read = 0;
        for (int64_t p = 0; p < key_dim_; ++p) read += rows[i].q[p] * S[p * value_dim_ + c];
        out[c] = std::exp(G[i]) * read;
      }
      for (int64_t j = 0; j <= i; ++j) {
        const float a = Dot(rows[i].q, rows[j].k) * std::exp(G[i] - G[j]);
        for (int64_t c = 0; c < value_dim_; ++c) out[c] += a * fresh[j][c];
      }
      StoreNormed(first + i, out);
    }
    for (int64_t p = 0; p < key_dim_; ++p) {
      for (int64_t c = 0; c < value_dim_; ++c) {
        float sum = std::exp(G[count - 1]) * S[p * value_dim_ + c];
        for (int64_t j = 0; j < count; ++j) {
          sum += rows[j].k[p] * std::exp(G[count - 1] - G[j]) * fresh[j][c];
        }
        S[p * value_dim_ + c] = sum;
      }
    }
  }

 private:
  static float Dot(const std::vector<float>& a, const std::vector<float>& b) {
    float sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }

  void StoreNormed(int64_t t, const std::vector<float>& o) const {
    const float* z = args_.gates.as<float>() + t * args_.gates.dim(1) + head_ * value_dim_;
    float sum = 0;
    for (float value : o) sum += value * value;
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(value_dim_) + args_.eps);
    for (int64_t i = 0; i < value_dim_; ++i) {
      const float gate = args_.activation == GateActivation::kSilu ? Silu(z[i]) : Sigmoid(z[i]);
      Store(args_.out, t * args_.out.row_stride() + head_ * value_dim_ + i,
            args_.norm.as<float>()[i] * (o[i] * scale) * gate);
    }
  }

  const GatedDeltaNetArgs& args_;
  int64_t head_, key_dim_, value_dim_;
};

}  // namespace

void ReferenceOps::DoGatedDeltaNet(const GatedDeltaNetArgs& args) {
  const int64_t heads = args.state.dim(1), head_state = args.state.dim(2) * args.state.dim(3);
  const SequenceRows& sequences = args.sequences;
  for (int64_t s = 0; s < sequences.num_sequences(); ++s) {
    const int64_t begin = sequences.row_begin.as<int32_t>()[s];
    const int64_t end = sequences.row_begin.as<int32_t>()[s + 1];
    const int64_t prompt_end = begin + sequences.num_prompt_rows.as<int32_t>()[s];
    const int64_t slot = sequences.state_slot.as<int32_t>()[s];
    for (int64_t head = 0; head < heads; ++head) {
      float* S = args.state.as<float>() + (slot * heads + head) * head_state;
      if (sequences.start.as<int32_t>()[s] == 0) std::fill(S, S + head_state, 0.0f);
      const DeltaHead rule(args, head);
      for (int64_t t = begin; t < prompt_end; t += kChunkTokens) {
        rule.Chunk(S, t, std::min<int64_t>(kChunkTokens, prompt_end - t));
      }
      for (int64_t t = prompt_end; t < end; ++t) rule.Recurrent(S, t);
    }
  }
}

}  // namespace plumbline
