// RopeTable, QkNormRope, Attention.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/reference.h"

namespace plumbline {

using namespace reference;  // NOLINT

void ReferenceOps::DoRopeTable(const RopeTableArgs& args) {
  const int64_t half = args.inv_freq.dim(0);
  for (int64_t t = 0; t < args.positions.dim(0); ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const float position = static_cast<float>(args.positions.as<int32_t>()[t]);
      const double angle = position * args.inv_freq.as<float>()[i];  // the product is rounded to f32
      args.cos.as<float>()[t * half + i] = static_cast<float>(std::cos(angle)) * args.attention_factor;
      args.sin.as<float>()[t * half + i] = static_cast<float>(std::sin(angle)) * args.attention_factor;
    }
  }
}

namespace {

struct HeadRotation {
  const float* cos;  // [half]
  const float* sin;  // [half]
  int64_t half;
  float norm_offset;
  float eps;
};

// Norm (when a weight is given), then rotate-half over the first 2 * half dims.
std::vector<float> NormAndRotate(const float* x, int64_t head_dim, const ConstTensor& weight,
                                 const HeadRotation& rotation) {
  std::vector<float> y(x, x + head_dim);
  if (!weight.empty()) {
    float sum = 0;
    for (float value : y) sum += value * value;
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(head_dim) + rotation.eps);
    for (int64_t i = 0; i < head_dim; ++i) {
      y[i] = y[i] * scale * (rotation.norm_offset + weight.as<float>()[i]);
    }
  }
  for (int64_t i = 0; i < rotation.half; ++i) {
    const float a = y[i], b = y[i + rotation.half];
    y[i] = a * rotation.cos[i] - b * rotation.sin[i];
    y[i + rotation.half] = b * rotation.cos[i] + a * rotation.sin[i];
  }
  return y;
}

}  // namespace

void ReferenceOps::DoQkNormRope(const QkNormRopeArgs& args) {
  const int64_t heads = args.q.dim(1), head_dim = args.q.dim(2), kv_heads = args.k_cache.dim(1);
  const int64_t half = args.cos.dim(1), q_stride = head_dim * (args.gated ? 2 : 1);
  for (int64_t t = 0; t < args.q.dim(0); ++t) {
    const float* row = args.qkv.as<float>() + t * args.qkv.dim(1);
    const HeadRotation rotation = {args.cos.as<float>() + t * half, args.sin.as<float>() + t * half,
                                   half, args.norm_offset, args.eps};
    for (int64_t head = 0; head < heads; ++head) {
      const std::vector<float> q = NormAndRotate(row + head * q_stride, head_dim, args.q_norm, rotation);
      for (int64_t i = 0; i < head_dim; ++i) Store(args.q, (t * heads + head) * head_dim + i, q[i]);
    }
    const int64_t slot = kv_heads > 0 ? args.slots.as<int32_t>()[t] : 0;
    const float* keys = row + heads * q_stride;
    const float* values = keys + kv_heads * head_dim;
    for (int64_t head = 0; head < kv_heads; ++head) {
      const int64_t at =
          ((slot / kBlockTokens * kv_heads + head) * kBlockTokens + slot % kBlockTokens) * head_dim;
      const std::vector<float> k =
          NormAndRotate(keys + head * head_dim, head_dim, args.k_norm, rotation);
      for (int64_t i = 0; i < head_dim; ++i) {
        Store(args.k_cache, at + i, k[i]);
        Store(args.v_cache, at + i, values[head * head_dim + i]);
      }
    }
  }
}

namespace {

// (max, sum of exp(s - max), sum of exp(s - max) * v) over some KV positions.
struct Partial {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
  std::vector<float> acc;
};

void MergeInto(Partial& total, const Partial& next) {
  const float max = std::max(total.max, next.max);
  const float keep = std::exp(total.max - max), add = std::exp(next.max - max);
  total.sum = total.sum * keep + next.sum * add;
  for (size_t i = 0; i < total.acc.size(); ++i) total.acc[i] = total.acc[i] * keep + next.acc[i] * add;
  total.max = max;
}

// Where the keys and values of one sequence's KV head live.
struct CacheRow {
  const AttentionArgs& args;
  const int32_t* blocks;
  int64_t kv_head;
  int64_t IndexOf(int64_t position) const {
    const int64_t block = blocks[position / kBlockTokens];
    return ((block * args.k_cache.dim(1) + kv_head) * kBlockTokens + position % kBlockTokens) *
           args.q.dim(2);
  }
};

Partial SegmentOf(const CacheRow& cache, const std::vector<float>& q, int64_t first, int64_t last) {
  const int64_t head_dim = static_cast<int64_t>(q.size());
  std::vector<float> scores;
  Partial partial;
  for (int64_t position = first; position < last; ++position) {
    const int64_t at = cache.IndexOf(position);
    float dot = 0;
    for (int64_t i = 0; i < head_dim; ++i) dot += q[i] * Load(cache.args.k_cache, at + i);
    scores.push_back(dot * cache.args.scale);
    partial.max = std::max(partial.max, scores.back());
  }
  partial.acc.assign(head_dim, 0.0f);
  for (int64_t position = first; position < last; ++position) {
    const float p = std::exp(scores[position - first] - partial.max);
    const int64_t at = cache.IndexOf(position);
    partial.sum += p;
    for (int64_t i = 0; i < head_dim; ++i) partial.acc[i] += p * Load(cache.args.v_cache, at + i);
  }
  return partial;
}

}  // namespace

void ReferenceOps::DoAttention(const AttentionArgs& args) {
  const int64_t heads = args.q.dim(1), head_dim = args.q.dim(2), group = heads / args.k_cache.dim(1);
  const SequenceRows& sequences = args.sequences;
  for (int64_t s = 0; s < sequences.num_sequences(); ++s) {
    const int64_t begin = sequences.row_begin.as<int32_t>()[s], end = sequences.row_begin.as<int32_t>()[s + 1];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t length = sequences.start.as<int32_t>()[s] + t - begin + 1;
      for (int64_t head = 0; head < heads; ++head) {
        const CacheRow cache = {
            args, sequences.block_table.as<int32_t>() + s * sequences.block_table.dim(1), head / group};
        const std::vector<float> q = Floats(args.q, (t * heads + head) * head_dim, head_dim);
        Partial total = SegmentOf(cache, q, 0, std::min<int64_t>(length, kSegmentTokens));
        for (int64_t first = kSegmentTokens; first < length; first += kSegmentTokens) {
          MergeInto(total, SegmentOf(cache, q, first, std::min(length, first + kSegmentTokens)));
        }
        const float* gate = args.gated ? args.qkv.as<float>() + t * args.qkv.dim(1) +
                                             head * 2 * head_dim + head_dim
                                       : nullptr;
        for (int64_t i = 0; i < head_dim; ++i) {
          const float value = total.acc[i] / total.sum;
          Store(args.out, t * args.out.row_stride() + head * head_dim + i,
                gate != nullptr ? value * Sigmoid(gate[i]) : value);
        }
      }
    }
  }
}

}  // namespace plumbline
