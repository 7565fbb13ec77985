// ConcatColumns, Penalties, Sample, Logprobs: from logits to tokens.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/philox.h"
#include "kernels/reference/reference.h"

namespace plumbline {

void ReferenceOps::DoConcatColumns(const ConcatColumnsArgs& args) {
  const int64_t rows = args.out.dim(0), vocab = args.out.dim(1), columns = args.parts.dim(2);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t v = 0; v < vocab; ++v) {
      args.out.as<float>()[r * vocab + v] =
          args.parts.as<float>()[(v / columns * rows + r) * columns + v % columns];
    }
  }
}

void ReferenceOps::DoPenalties(const PenaltiesArgs& args) {
  const int64_t vocab = args.logits.dim(1);
  for (int64_t r = 0; r < args.logits.dim(0); ++r) {
    const float repetition = args.repetition.as<float>()[r];
    const int32_t end = args.entry_begin.as<int32_t>()[r + 1];
    for (int32_t e = args.entry_begin.as<int32_t>()[r]; e < end; ++e) {
      float& x = args.logits.as<float>()[r * vocab + args.token.as<int32_t>()[e]];
      const int32_t count = args.count.as<int32_t>()[e];
      if (args.seen.as<int32_t>()[e] != 0) x = x > 0 ? x / repetition : x * repetition;
      const float presence = count > 0 ? args.presence.as<float>()[r] : 0.0f;
      x -= args.frequency.as<float>()[r] * static_cast<float>(count) + presence;
      x += args.bias.as<float>()[e];
    }
  }
}

namespace {

// The order of SampleArgs: logit descending, then id ascending.
struct Before {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

int32_t ArgMax(const float* logits, int64_t vocab) {
  int32_t best = 0;
  for (int32_t v = 1; v < vocab; ++v) {
    if (logits[v] > logits[best]) best = v;
  }
  return best;
}

struct DrawSettings {
  float temperature, top_p, min_p;
  int32_t top_k;
  double uniform;
};

int32_t Draw(const float* logits, int64_t vocab, const DrawSettings& settings) {
  const int32_t best = ArgMax(logits, vocab);
  if (settings.temperature == 0) return best;
  const float max = logits[best] / settings.temperature;
  std::vector<double> p(vocab);
  std::vector<int32_t> list;
  for (int32_t v = 0; v < vocab; ++v) {
    p[v] = std::exp(static_cast<double>(logits[v] / settings.temperature) - max);
    if (p[v] >= settings.min_p) list.push_back(v);
  }
  if (settings.top_k > 0 || settings.top_p < 1) {
    std::sort(list.begin(), list.end(), Before{logits});
    if (settings.top_k > 0) list.resize(std::min<size_t>(list.size(), settings.top_k));
    double sum = 0;
    for (int32_t v : list) sum += p[v];
    double prefix = 0;
    size_t kept = 0;
    while (kept < list.size() && (kept == 0 || prefix < settings.top_p * sum)) prefix += p[list[kept++]];
    list.resize(kept);
  }
  double sum = 0;
  for (int32_t v : list) sum += p[v];
  double prefix = 0;
  for (int32_t v : list) {
    prefix += p[v];
    if (prefix > settings.uniform * sum) return v;
  }
  return list.back();
}

}  // namespace

void ReferenceOps::DoSample(const SampleArgs& args) {
  const int64_t vocab = args.logits.dim(1);
  for (int64_t r = 0; r < args.logits.dim(0); ++r) {
    const DrawSettings settings = {
        args.temperature.as<float>()[r], args.top_p.as<float>()[r], args.min_p.as<float>()[r],
        args.top_k.as<int32_t>()[r],
        UniformDraw(args.seed.as<int64_t>()[r], args.position.as<int32_t>()[r])};
    args.tokens.as<int32_t>()[r] = Draw(args.logits.as<float>() + r * vocab, vocab, settings);
  }
}

void ReferenceOps::DoLogprobs(const LogprobsArgs& args) {
  const int64_t vocab = args.logits.dim(1), leaf = (vocab + kNumLeaves - 1) / kNumLeaves;
  const int64_t num_top = args.top_ids.empty() ? 0 : args.top_ids.dim(1);
  for (int64_t r = 0; r < args.logits.dim(0); ++r) {
    const float* logits = args.logits.as<float>() + r * vocab;
    const double max = logits[ArgMax(logits, vocab)];
    double sums[kNumLeaves] = {};
    for (int64_t v = 0; v < vocab; ++v) sums[v / leaf] += std::exp(logits[v] - max);
    const double lse = max + std::log(((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                                      ((sums[4] + sums[5]) + (sums[6] + sums[7])));
    const int32_t target = args.targets.as<int32_t>()[r];
    int32_t rank = 1;
    const Before before = {logits};
    for (int32_t v = 0; v < vocab; ++v) rank += before(v, target) ? 1 : 0;
    args.target_logprobs.as<float>()[r] = static_cast<float>(logits[target] - lse);
    args.target_ranks.as<int32_t>()[r] = rank;
    std::vector<int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + num_top, order.end(), before);
    for (int64_t i = 0; i < num_top; ++i) {
      args.top_ids.as<int32_t>()[r * num_top + i] = order[i];
      args.top_logprobs.as<float>()[r * num_top + i] = static_cast<float>(logits[order[i]] - lse);
    }
  }
}

}  // namespace plumbline
