#include "parallel/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;
constexpr IntRange kPositions = {1, int64_t{1} << 28};

// Long wavelengths are stretched by the factor, short ones kept, those between interpolated
// (Llama 3.1).
void ScaleLlama3(const JsonReader& scaling, int64_t max_positions, std::vector<double>& inv_freq) {
  const double factor = scaling.Positive("factor");
  const double low = scaling.Positive("low_freq_factor");
  const double high = scaling.Positive("high_freq_factor");
  const double original =
      scaling.IntOr("original_max_position_embeddings", max_positions, kPositions);
  if (high <= low) scaling.Invalid("high_freq_factor", "must be greater than low_freq_factor");
  for (double& f : inv_freq) {
    const double wavelength = kTwoPi / f;
    if (wavelength > original / low) {
      f /= factor;
    } else if (wavelength >= original / high) {
      const double smooth = (original / wavelength - low) / (high - low);
      f = (1 - smooth) * f / factor + smooth * f;
    }
  }
}

double YarnMscale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

struct YarnRamp {
  double low = 0;   // pairs below keep their frequency
  double high = 0;  // pairs above are stretched
};

YarnRamp FindYarnRamp(const JsonReader& scaling, double theta, double original, int64_t dim) {
  const double fast = scaling.PositiveOr("beta_fast", 32),
               slow = scaling.PositiveOr("beta_slow", 1);
  const auto pair_of = [&](double rotations) {
    return dim * std::log(original / (rotations * kTwoPi)) / (2 * std::log(theta));
  };
  YarnRamp ramp{.low = pair_of(fast), .high = pair_of(slow)};
  if (scaling.BoolOr("truncate", true)) ramp = {std::floor(ramp.low), std::ceil(ramp.high)};
  ramp = {std::max(ramp.low, 0.0), std::min(ramp.high, static_cast<double>(dim - 1))};
  if (ramp.low == ramp.high) ramp.high += 0.001;
  return ramp;
}

// YaRN, arXiv:2309.00071.
void ScaleYarn(const JsonReader& scaling, double theta, int64_t dim, RopeAndPositions& out,
               std::vector<double>& inv_freq) {
  const int64_t original =
      scaling.IntOr("original_max_position_embeddings", out.max_positions, kPositions);
  const double factor =
      scaling.PositiveOr("factor", static_cast<double>(out.max_positions) / original);
  double attention_factor = YarnMscale(factor, 1);
  if (scaling.Has("attention_factor")) {
    attention_factor = scaling.Positive("attention_factor");
  } else if (scaling.Has("mscale") && scaling.Has("mscale_all_dim")) {
    attention_factor = YarnMscale(factor, scaling.Positive("mscale")) /
                       YarnMscale(factor, scaling.Positive("mscale_all_dim"));
  }
  out.rope.attention_factor = static_cast<float>(attention_factor);
  const YarnRamp ramp = FindYarnRamp(scaling, theta, original, dim);
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double stretched =
        std::clamp((static_cast<double>(i) - ramp.low) / (ramp.high - ramp.low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / factor * stretched + inv_freq[i] * (1 - stretched);
  }
  const double stretched_positions =
      std::min(static_cast<double>(original) * factor, static_cast<double>(kPositions.max));
  out.max_positions = std::max(out.max_positions, static_cast<int64_t>(stretched_positions));
}

}  // namespace

RopeAndPositions ReadRope(const JsonReader& text, const RopeInputs& inputs) {
  const bool is_v5 = text.Has("rope_parameters"), has_scaling = text.Has("rope_scaling");
  const char* key = is_v5 ? "rope_parameters" : "rope_scaling";
  const JsonReader scaling = is_v5 || has_scaling ? text.Object(key) : text;
  const double theta =
      scaling.PositiveOr("rope_theta", text.PositiveOr("rope_theta", inputs.default_theta));
  const double rotary_part =
      scaling.PositiveOr("partial_rotary_factor",
                         text.PositiveOr("partial_rotary_factor", inputs.default_rotary_part));
  const std::string type = is_v5 || has_scaling
                               ? scaling.StringOr("rope_type", scaling.StringOr("type", "default"))
                               : "default";
  RopeAndPositions out{.max_positions = inputs.max_positions};
  if (scaling.Has("full_attention") || scaling.Has("sliding_attention")) {
    scaling.Unsupported("full_attention", "sets rotary embeddings per layer type: not supported");
  }
  if (theta <= 1 || theta > 1e12) scaling.Invalid("rope_theta", "must lie between 1 and 1e12");
  const double dim_f64 = std::trunc(inputs.head_dim * std::min(rotary_part, 2.0));
  const int64_t dim = static_cast<int64_t>(dim_f64);
  if (dim < 2 || dim % 2 != 0 || dim > inputs.head_dim) {
    scaling.Invalid("partial_rotary_factor",
                    absl::StrCat("gives ", dim, " rotated dimensions of ", inputs.head_dim,
                                 "; an even number from 2 on is expected"));
    return out;
  }
  std::vector<double> inv_freq(dim / 2);
  for (int64_t i = 0; i < dim / 2; ++i) inv_freq[i] = std::pow(theta, -2.0 * i / dim);

  if (type == "linear") {
    const double factor = scaling.Positive("factor");
    for (double& f : inv_freq) f /= factor;
  } else if (type == "llama3") {
    ScaleLlama3(scaling, inputs.max_positions, inv_freq);
  } else if (type == "yarn") {
    ScaleYarn(scaling, theta, dim, out, inv_freq);
  } else if (type != "default") {
    scaling.Unsupported(
        "rope_type", absl::StrCat("is ", type, "; default, linear, llama3 and yarn are supported"));
  }
  out.rope.rotary_dim = dim;
  out.rope.inv_freq.assign(inv_freq.begin(), inv_freq.end());
  return out;
}

}  // namespace plumbline
