// One directory of tests/golden: a tiny checkpoint and what PyTorch computes from it (tests/golden/README.md).
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/half.h"
#include "parallel/model_config.h"
#include "worker/backend_factory.h"
#include "worker/local_ranks.h"
#include "worker/safetensors.h"

namespace plumbline {

inline std::string GoldenDir(const std::string& name) {
  return absl::StrCat(PLUMBLINE_SOURCE_DIR, "/tests/golden/", name);
}
inline std::string DemoModelDir() { return absl::StrCat(PLUMBLINE_SOURCE_DIR, "/deploy/demo_model/model"); }

inline const std::vector<std::string>& GoldenModels() {
  static const std::vector<std::string> names = {"qwen2_tied", "qwen3",   "qwen35_text", "qwen35_vl",
                                                 "llama3",     "mixtral", "qwen3_moe"};
  return names;
}

struct GoldenSequence {
  std::vector<int32_t> tokens;
  std::vector<float> logits_f32;   // [T, V]: the reference
  std::vector<float> logits_hf16;  // [T, V]: what the usual 16-bit forward gives
};

struct GoldenCase {
  std::string dir;
  ModelConfig config;
  std::vector<GoldenSequence> sequences;
};

inline std::vector<float> ReadFloats(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* entry = file.Find(name);
  PL_CHECK_MSG(entry != nullptr, name.c_str());
  int64_t count = 1;
  for (int64_t dim : entry->shape) count *= dim;
  std::vector<float> values(count);
  const std::byte* data = file.Data(*entry);
  for (int64_t i = 0; i < count; ++i) {
    if (entry->dtype == "F32") values[i] = reinterpret_cast<const float*>(data)[i];
    if (entry->dtype == "BF16") values[i] = ToFloat(reinterpret_cast<const Bf16*>(data)[i]);
    if (entry->dtype == "F16") values[i] = ToFloat(reinterpret_cast<const F16*>(data)[i]);
  }
  return values;
}

inline GoldenCase LoadGolden(const std::string& name) {
  GoldenCase golden = {.dir = GoldenDir(name), .config = *ReadModelConfig(GoldenDir(name)), .sequences = {}};
  const auto file = *SafetensorsFile::Open(golden.dir + "/expected.safetensors");
  for (int i = 0; file->Find(absl::StrCat("tokens.", i)) != nullptr; ++i) {
    const SafetensorsEntry& entry = *file->Find(absl::StrCat("tokens.", i));
    const auto* tokens = reinterpret_cast<const int32_t*>(file->Data(entry));
    golden.sequences.push_back({.tokens = {tokens, tokens + entry.shape[0]},
                                .logits_f32 = ReadFloats(*file, absl::StrCat("logits_f32.", i)),
                                .logits_hf16 = ReadFloats(*file, absl::StrCat("logits_hf16.", i))});
  }
  return golden;
}

struct RunShape {
  Mesh mesh;
  std::string arithmetic;  // "cuda": the CUDA backend
  DType compute_dtype = DType::kBf16;
  int threads_per_rank = 1;
  LocalRanks::Options::Transport transport = LocalRanks::Options::Transport::kThreads;
  int64_t max_sequences = 8;
  int64_t max_tokens = 4096;
  int64_t max_step_tokens = 1024;
  std::string cache_dir;  // of packed weights
  std::function<void(int rank, const std::string& line)> on_line;
  int64_t gather_bytes = kGatherBytes;
};

inline std::unique_ptr<LocalRanks> StartModel(const std::string& dir, const ModelConfig& config,
                                              const RunShape& shape) {
  auto ranks = LocalRanks::Start(
      {.config = config,
       .mesh = shape.mesh,
       .limits = {.max_tokens = shape.max_tokens,
                  .max_sequences = shape.max_sequences,
                  .max_step_tokens = shape.max_step_tokens},
       .compute_dtype = shape.compute_dtype,
       .make_backend =
           [shape] {
             if (shape.arithmetic == "cuda") return MakeBackend({.device = "cuda"});
             return MakeBackend({.arithmetic = shape.arithmetic, .num_threads = shape.threads_per_rank});
           },
       .transport = shape.transport,
       .open_weights = [dir, config](const ShardPlan& plan) { return OpenCheckpoint(dir, config, plan); },
       .on_progress = {},
       .cache_dir = shape.cache_dir,
       .on_line = shape.on_line,
       .gather_bytes = shape.gather_bytes});
  PL_CHECK_MSG(ranks.ok(), ranks.status().ToString().c_str());
  return *std::move(ranks);
}

// Block table of a sequence alone in the cache.
inline std::vector<int32_t> FirstBlocks(int64_t num_tokens) {
  std::vector<int32_t> blocks((num_tokens + 63) / 64);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
  return blocks;
}

inline void AppendFloats(const std::string& bytes, std::vector<float>& out) {
  const auto* values = reinterpret_cast<const float*>(bytes.data());
  out.insert(out.end(), values, values + bytes.size() / 4);
}

// f32 logits [T, V] of one prompt, alone in the batch, in chunks of `chunk` tokens (a multiple of 64).
inline std::vector<float> PromptLogits(LocalRanks& ranks, const std::vector<int32_t>& tokens, int64_t chunk) {
  std::vector<float> logits;
  const int64_t count = static_cast<int64_t>(tokens.size());
  for (int64_t start = 0; start < count; start += chunk) {
    const int64_t end = std::min(count, start + chunk);
    SequencePlan sequence = {.sequence_id = 1,
                             .tokens = {tokens.begin() + start, tokens.begin() + end},
                             .start = static_cast<int32_t>(start),
                             .num_prompt_tokens = static_cast<int32_t>(end - start),
                             .block_table = FirstBlocks(end),
                             .state_slot = 0,
                             .draw = {},
                             .targets = {},
                             .return_logits = true};
    auto result = ranks.Run({.epoch = 1, .step = static_cast<uint64_t>(start), .sequences = {sequence}});
    PL_CHECK_MSG(result.ok(), result.status().ToString().c_str());
    AppendFloats(result->sequences[0].logits, logits);
  }
  return logits;
}

// Mean over rows of KL(p || q), with the rows' softmax in f64.
inline double MeanKl(const std::vector<float>& p_logits, const std::vector<float>& q_logits, int64_t vocab) {
  const int64_t rows = static_cast<int64_t>(p_logits.size()) / vocab;
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const float* p = p_logits.data() + r * vocab;
    const float* q = q_logits.data() + r * vocab;
    double p_max = p[0], q_max = q[0];
    for (int64_t v = 0; v < vocab; ++v) p_max = std::max<double>(p_max, p[v]), q_max = std::max<double>(q_max, q[v]);
    double p_sum = 0, q_sum = 0;
    for (int64_t v = 0; v < vocab; ++v) p_sum += std::exp(p[v] - p_max), q_sum += std::exp(q[v] - q_max);
    const double p_lse = p_max + std::log(p_sum), q_lse = q_max + std::log(q_sum);
    for (int64_t v = 0; v < vocab; ++v) total += std::exp(p[v] - p_lse) * ((p[v] - p_lse) - (q[v] - q_lse));
  }
  return total / static_cast<double>(rows);
}

inline double MaxAbsDifference(const std::vector<float>& a, const std::vector<float>& b) {
  PL_CHECK(a.size() == b.size());
  double max = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double{a[i]} - b[i]);
    if (!(difference <= max)) max = difference;  // NaN counts
  }
  return max;
}

}  // namespace plumbline
