// Host tensors and a step of several sequences, for tests of the ops.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/half.h"

namespace plumbline {

inline constexpr DType kActTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

// Relative error of one rounding to the type.
inline double UnitOf(DType dtype) {
  return dtype == DType::kBf16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-24;
}

// What the tests hold against the reference: every arithmetic of the CPU, or CUDA where they are built over it (cuda_host/).
inline std::vector<std::string> TestedArithmetics() {
#ifdef PLUMBLINE_TEST_CUDA
  return {"cuda"};
#else
  return CpuArithmetics();
#endif
}

// The backend of one of them; "reference-1" is the reference.
inline Backend BackendOf(const std::string& arithmetic, int num_threads = 2) {
  if (arithmetic == "reference-1") return MakeReferenceBackend();
  if (arithmetic == "cuda") return MakeCudaBackend(0);
  return MakeCpuBackend({.arithmetic = arithmetic, .num_threads = num_threads});
}

// Owns what a Tensor views. Copies are deep, so a case can be run again from the same state.
struct HostTensor {
  HostTensor() = default;
  HostTensor(DType dtype, Shape shape) : dtype(dtype), shape(shape), bytes(shape.num_elements() * SizeOf(dtype)) {}
  HostTensor(Shape shape, const std::vector<int32_t>& values) : HostTensor(DType::kI32, shape) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  }

  operator Tensor() { return {bytes.data(), dtype, shape}; }
  operator ConstTensor() const { return bytes.empty() ? ConstTensor() : ConstTensor(bytes.data(), dtype, shape); }
  int64_t size() const { return bytes.empty() ? 0 : shape.num_elements(); }

  void Set(int64_t i, float value) {
    if (dtype == DType::kBf16) {
      Write(i, FromFloat<Bf16>(value));
    } else if (dtype == DType::kF16) {
      Write(i, FromFloat<F16>(value));
    } else {
      Write(i, value);
    }
  }
  float Get(int64_t i) const {
    if (dtype == DType::kBf16) return ToFloat(reinterpret_cast<const Bf16*>(bytes.data())[i]);
    if (dtype == DType::kF16) return ToFloat(reinterpret_cast<const F16*>(bytes.data())[i]);
    return reinterpret_cast<const float*>(bytes.data())[i];
  }
  void Fill(float value) {
    for (int64_t i = 0; i < size(); ++i) Set(i, value);
  }
  std::vector<float> Floats() const {
    std::vector<float> values(size());
    for (int64_t i = 0; i < size(); ++i) values[i] = Get(i);
    return values;
  }
  // Elements [i * count, (i + 1) * count).
  std::vector<float> Row(int64_t i, int64_t count) const {
    std::vector<float> values(count);
    for (int64_t j = 0; j < count; ++j) values[j] = Get(i * count + j);
    return values;
  }

  DType dtype = DType::kF32;
  Shape shape;
  std::vector<uint8_t> bytes;

 private:
  template <typename T>
  void Write(int64_t i, T value) {
    std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
  }
};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float Normal() { return normal_(engine_); }
  int64_t Below(int64_t n) { return static_cast<int64_t>(engine_() % n); }
  HostTensor Tensor(DType dtype, Shape shape, float scale = 1, float mean = 0) {
    HostTensor tensor(dtype, shape);
    for (int64_t i = 0; i < tensor.size(); ++i) tensor.Set(i, mean + scale * Normal());
    return tensor;
  }
  std::vector<int32_t> Permutation(int32_t n) {
    std::vector<int32_t> order(n);
    for (int32_t i = 0; i < n; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), engine_);
    return order;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

// |actual - expected| <= relative |expected| + absolute, everywhere; a NaN is a failure.
struct Tolerance {
  double relative = 0, absolute = 0;
};
inline void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected, Tolerance tolerance,
                       const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double worst = 0;
  size_t at = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double allowed = tolerance.relative * std::fabs(expected[i]) + tolerance.absolute;
    const double error = std::fabs(double{actual[i]} - expected[i]);
    const double ratio = error == 0 ? 0 : std::isnan(error) ? 1e300 : error / std::max(allowed, 1e-300);
    if (ratio > worst) worst = ratio, at = i;
  }
  EXPECT_LE(worst, 1) << what << ": element " << at << " is " << actual[at] << ", expected " << expected[at];
}

// One sequence of a step: rows at positions start, start + 1, ..., the first num_prompt of them prompt.
struct StepPart {
  int sequence;
  int start, num_rows, num_prompt;
};

// The tensors of SequenceRows for a step.
struct StepRows {
  HostTensor row_begin, start, num_prompt_rows, block_table, state_slot;
  // tables[sequence]: its KV blocks; slots[sequence]: its state slot.
  StepRows(const std::vector<StepPart>& parts, const std::vector<std::vector<int32_t>>& tables,
           const std::vector<int32_t>& slots) {
    const int64_t num = parts.size();
    std::vector<int32_t> begins = {0}, starts, prompts, blocks, chosen;
    size_t max_blocks = 1;
    for (const auto& table : tables) max_blocks = std::max(max_blocks, table.size());
    for (const StepPart& part : parts) {
      begins.push_back(begins.back() + part.num_rows);
      starts.push_back(part.start);
      prompts.push_back(part.num_prompt);
      chosen.push_back(slots.empty() ? -1 : slots[part.sequence]);
      for (size_t i = 0; i < max_blocks; ++i) {
        const bool exists = !tables.empty() && i < tables[part.sequence].size();
        blocks.push_back(exists ? tables[part.sequence][i] : -1);
      }
    }
    row_begin = HostTensor({num + 1}, begins);
    start = HostTensor({num}, starts);
    num_prompt_rows = HostTensor({num}, prompts);
    block_table = HostTensor({num, static_cast<int64_t>(max_blocks)}, blocks);
    state_slot = HostTensor({num}, chosen);
  }
  SequenceRows view() const { return {row_begin, start, num_prompt_rows, block_table, state_slot}; }
};

}  // namespace plumbline
