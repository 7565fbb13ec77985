// MakeRandomWeights: numbers from a counter, so that any rows of any tensor can be had without
// those before them.
#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "kernels/check.h"
#include "kernels/half.h"
#include "worker/weight_source.h"

namespace plumbline {
namespace {

constexpr int kPerWord = 4;  // 16-bit numbers of one 64-bit word
constexpr int64_t kBlock =
    256;  // elements made at a time: a fixed count lets the compiler use vectors

// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
// OOPSLA 2014).
inline uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;

uint64_t KeyOf(uint64_t seed, const std::string& name) {
  uint64_t key = Mix(seed + kGamma);
  for (char c : name) key = Mix(key ^ static_cast<uint8_t>(c)) + kGamma;
  return key;
}

struct Distribution {
  float center = 0;
  float half_width = 0;  // uniform in center +- half_width
};

// kBlock numbers from the words at `counter` on.
template <typename T>
void FillBlock(uint64_t key, uint64_t counter, Distribution d, T* out) {
  float uniform[kBlock];  // odd multiples of 2^-16 in (-1, 1)
  for (int64_t i = 0; i < kBlock / kPerWord; ++i) {
    const uint64_t word = Mix(key + (counter + i) * kGamma);
    for (int j = 0; j < kPerWord; ++j) {
      const int32_t number = static_cast<int16_t>(word >> (16 * j));
      uniform[i * kPerWord + j] = static_cast<float>(2 * number + 1) * 0x1p-16f;
    }
  }
  for (int64_t i = 0; i < kBlock; ++i) out[i] = FromFloat<T>(d.center + d.half_width * uniform[i]);
}

// Every row starts at a word of its own, so rows do not depend on how many are asked for at once.
template <typename T>
void FillRows(uint64_t key, RowRange rows, int64_t columns, Distribution d, T* out) {
  const int64_t words = (columns + kPerWord - 1) / kPerWord;
  for (int64_t r = 0; r < rows.count; ++r) {
    const uint64_t counter = (rows.first + r) * words;
    T* row = out + r * columns;
    int64_t c = 0;
    for (; c + kBlock <= columns; c += kBlock) FillBlock(key, counter + c / kPerWord, d, row + c);
    if (c < columns) {
      T rest[kBlock];
      FillBlock(key, counter + c / kPerWord, d, rest);
      std::copy(rest, rest + (columns - c), row + c);
    }
  }
}

class RandomWeights : public WeightSource {
 public:
  RandomWeights(const ModelConfig& config, uint64_t seed)
      : dtype_(config.dtype), norm_offset_(config.norm_offset), seed_(seed) {}

  absl::StatusOr<ConstTensor> Rows(const TensorPlan& tensor, RowRange range) override {
    PL_CHECK(range.first >= 0 && range.count >= 0 && range.first + range.count <= tensor.rows);
    const int64_t elements = range.count * tensor.columns;
    buffer_.resize(std::max(buffer_.size(), elements * SizeOf(dtype_)));
    const Tensor out(buffer_.data(), dtype_, {range.count, tensor.columns});
    switch (dtype_) {
      case DType::kBf16:
        Fill(tensor, range, out.as<Bf16>());
        break;
      case DType::kF16:
        Fill(tensor, range, out.as<F16>());
        break;
      case DType::kF32:
        Fill(tensor, range, out.as<float>());
        break;
      default:
        PL_CHECK_MSG(false, "a model's weights are bf16, f16 or f32");
    }
    return out;
  }

  bool IsMapped() const override { return false; }
  void Release(const TensorPlan&, RowRange) override {}

 private:
  template <typename T>
  void Fill(const TensorPlan& tensor, RowRange range, T* out) const {
    FillRows(KeyOf(seed_, tensor.name), range, tensor.columns, DistributionOf(tensor), out);
    if (!absl::EndsWith(tensor.name, ".dt_bias")) return;
    // What was drawn is the logarithm of the step size dt; the model takes softplus(dt_bias).
    for (int64_t i = 0; i < range.count; ++i)
      out[i] = FromFloat<T>(std::log(std::expm1(std::exp(ToFloat(out[i])))));
  }

  Distribution DistributionOf(const TensorPlan& tensor) const {
    const std::string& name = tensor.name;
    // A head remembers about 1 / (exp(A_log) * dt) tokens: exp(A_log) in [1, 4], dt in [0.001,
    // 0.25].
    if (absl::EndsWith(name, ".A_log")) return Between(0, std::log(4.0f));
    if (absl::EndsWith(name, ".dt_bias")) return Between(std::log(0.001f), std::log(0.25f));
    if (absl::EndsWith(name, ".bias")) return Between(-0.1f, 0.1f);
    if (tensor.columns == 1 && tensor.kept_f32) {  // norms
      const float neutral = absl::EndsWith(name, "linear_attn.norm.weight") ? 1 : 1 - norm_offset_;
      return Between(neutral - 0.1f, neutral + 0.1f);
    }
    // Standard deviation 1 / sqrt(columns): outputs are as large as inputs.
    return {.center = 0, .half_width = std::sqrt(3.0f / static_cast<float>(tensor.columns))};
  }

  static Distribution Between(float low, float high) {
    return {(low + high) / 2, (high - low) / 2};
  }

  DType dtype_;
  float norm_offset_;
  uint64_t seed_;
  std::vector<std::byte> buffer_;  // holds the last Rows
};

}  // namespace

std::unique_ptr<WeightSource> MakeRandomWeights(const ModelConfig& config, uint64_t seed) {
  return std::make_unique<RandomWeights>(config, seed);
}

}  // namespace plumbline
