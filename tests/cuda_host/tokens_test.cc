// What the CUDA kernels from logits to tokens promise beyond ops_parity_test: sequential sums to the bit, every way of a
// row of Sample, bits that depend on nothing else.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequential_sum.cuh"
#include "kernels/cuda/token_sort.cuh"
#include "tests/ops_test_util.h"

namespace plumbline::cuda {
namespace {

// ---- sequential sums ----------------------------------------------------------------------------------------------

constexpr int kThreads = 64, kItems = 4;

__global__ void SumKernel(Reached* out, const double* p, double start, double limit) {
  double own[kItems];
  for (int i = 0; i < kItems; ++i) own[i] = p[threadIdx.x * kItems + i];
  const Reached reached = AddInOrder(start, own, limit, SharedMemory<SumScratch>());
  out[threadIdx.x] = reached;
}

Reached PlainLoop(const std::vector<double>& p, double sum, double limit) {
  for (size_t i = 0; i < p.size(); ++i) {
    sum += p[i];
    if (sum > limit) return {static_cast<int64_t>(i), sum};
  }
  return {-1, sum};
}

void ExpectPlainSum(const std::vector<double>& p, double start, double limit) {
  std::vector<Reached> out(kThreads);
  Launch({1, kThreads, sizeof(SumScratch), nullptr}, SumKernel, out.data(), p.data(), start, limit);
  const Reached expected = PlainLoop(p, start, limit);
  for (const Reached& reached : out) {
    ASSERT_EQ(reached.index, expected.index) << "from " << start << " to " << limit;
    ASSERT_EQ(std::bit_cast<uint64_t>(reached.sum), std::bit_cast<uint64_t>(expected.sum)) << "from " << start;
  }
}

TEST(SequentialSum, EqualsAPlainLoopToTheBit) {
  std::mt19937_64 random(5);
  const auto uniform = [&] { return std::ldexp(static_cast<double>(random() >> 11), -53); };
  const std::function<double()> kinds[] = {
      [&] { return uniform(); },
      [&] { return std::exp(-40 * uniform()); },                                  // as of logits
      [&] { return std::ldexp(uniform(), -static_cast<int>(random() % 1100)); },  // down to subnormals
      [&] { return std::ldexp(static_cast<double>(random() % 8), -53); },         // halves of the last place of 1: ties
      [&] { return std::ldexp(static_cast<double>(random() % 8 * 2 + 1), -52 + static_cast<int>(random() % 3)); },
      [&] { return random() % 3 == 0 ? 0x1p-1074 : 0.0; },
      [&] { return random() % 9 == 0 ? std::ldexp(1.0, static_cast<int>(random() % 200)) : 0x1p-60; },
      [&] { return 0.0; }};
  for (const auto& draw : kinds) {
    for (double start : {0.0, 1.0, 1 + 0x1p-52, 2 - 0x1p-52, 4 - 0x1p-51, 0x1p-1074, 0x1p-1022 - 0x1p-1074, 1e9}) {
      for (int repeat = 0; repeat < 4; ++repeat) {
        std::vector<double> p(kThreads * kItems);
        for (double& x : p) x = draw();
        const double all = PlainLoop(p, start, INFINITY).sum;
        cuda_host::SetFiberSeed(repeat);
        ExpectPlainSum(p, start, 1e300);
        ExpectPlainSum(p, start, start + uniform() * (all - start));
        ExpectPlainSum(p, start, start);
        ExpectPlainSum(p, start, all);
      }
    }
  }
  cuda_host::SetFiberSeed(0);
}

// ---- sorts ---------------------------------------------------------------------------------------------------------

__global__ void SortIdsKernel(int32_t* ids, int32_t* other, const float* logits, int64_t size) {
  SortIds(ids, other, logits, size, SharedMemory<RadixScratch>());
}

TEST(TokenSort, IdsInOrderAtAnySize) {
  for (int64_t size : {1, 31, 2048, 2049, 7000}) {
    std::vector<float> logits = Random(static_cast<uint32_t>(size)).Tensor(DType::kF32, {size}, 2).Floats();
    for (int64_t i = 0; i < size; i += 3) logits[i] = std::round(logits[i]);  // ties, and zeros of both signs
    std::vector<int32_t> ids(size), other(size, -1), expected(size);
    for (int64_t i = 0; i < size; ++i) ids[i] = expected[i] = static_cast<int32_t>(i);
    std::stable_sort(expected.begin(), expected.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    cuda_host::SetFiberSeed(size);
    Launch({1, kTokenThreads, sizeof(RadixScratch), nullptr}, SortIdsKernel, ids.data(), other.data(), logits.data(), size);
    cuda_host::SetFiberSeed(0);
    EXPECT_EQ(ids, expected);
  }
}

// ---- Sample and Logprobs ----------------------------------------------------------------------------------------------

struct Settings {
  float temperature, top_p, min_p;
  int32_t top_k;
};
struct SampleCase {
  HostTensor logits;               // [R, V]
  std::vector<Settings> settings;  // row r takes settings[r % size]
  int first_row = 0;               // of the seeds and positions

  std::vector<int32_t> Run(Backend& backend) const {
    const int64_t rows = logits.shape[0];
    HostTensor temperature(DType::kF32, {rows}), top_p = temperature, min_p = temperature, seed(DType::kI64, {rows});
    std::vector<int32_t> top_k(rows), position(rows), tokens(rows, -1);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first_row + r;
      const Settings& chosen = settings[row % settings.size()];
      temperature.Set(r, chosen.temperature);
      top_p.Set(r, chosen.top_p);
      min_p.Set(r, chosen.min_p);
      top_k[r] = chosen.top_k;
      position[r] = static_cast<int32_t>(17 * row);
      reinterpret_cast<int64_t*>(seed.bytes.data())[r] = 3 + row * 0x123456789abLL;
    }
    backend.ops->Sample({.tokens = Tensor(tokens.data(), DType::kI32, {rows}),
                         .logits = logits,
                         .temperature = temperature,
                         .top_k = HostTensor({rows}, top_k),
                         .top_p = top_p,
                         .min_p = min_p,
                         .seed = seed,
                         .position = HostTensor({rows}, position)});
    return tokens;
  }
};

HostTensor RowsOf(const HostTensor& all, int64_t first, int64_t count) {
  HostTensor some(all.dtype, {count, all.shape[1]});
  std::memcpy(some.bytes.data(), all.bytes.data() + first * all.shape[1] * SizeOf(all.dtype), some.bytes.size());
  return some;
}

const std::vector<Settings> kWays = {{0, 1, 0, 0},     {1, 1, 0, 0},      {0.7f, 0.8f, 0, 20},  {1, 0.95f, 0, 0},
                                     {1, 1, 0.05f, 0}, {3, 0.999f, 0, 0}, {2, 0.9f, 0.001f, 0}, {1, 1, 0, 4500}};

TEST(Tokens, SampleDrawsTheReferenceTokensFromManyChunks) {
  Backend backend = BackendOf("cuda"), reference = MakeReferenceBackend();
  const int64_t rows = 2 * static_cast<int64_t>(kWays.size()), vocab = 30001;
  const SampleCase sample = {Random(7).Tensor(DType::kF32, {rows, vocab}, 2.5f), kWays};
  EXPECT_EQ(sample.Run(backend), sample.Run(reference));
}

// 1024 equal tokens, and so little below them that half of the sum in list order is just above the sum of 512 of them, by
// less than a look at the best tokens can tell: each of the others rounds the sum up by one place.
TEST(Tokens, SampleCutsTopPWhereOnlyTheWholeListCanTell) {
  Backend backend = BackendOf("cuda"), reference = MakeReferenceBackend();
  const int64_t rows = 12, vocab = 8192;
  SampleCase sample = {HostTensor(DType::kF32, {rows, vocab}), {{1, 0.5f, 0, 0}}};
  sample.logits.Fill(3 - 29.6f);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < 1024; ++i) sample.logits.Set(r * vocab + 7 * i, 3);
  }
  EXPECT_EQ(sample.Run(backend), sample.Run(reference));
}

TEST(Tokens, NaNsAreNeverDrawn) {
  Backend backend = BackendOf("cuda"), reference = MakeReferenceBackend();
  const int64_t rows = static_cast<int64_t>(kWays.size()), vocab = 5000;
  SampleCase sample = {Random(8).Tensor(DType::kF32, {rows, vocab}, 2), kWays}, without = sample;
  for (int64_t i = 0; i < rows * vocab; i += 3) {
    sample.logits.Set(i, i % 2 == 0 ? NAN : -NAN);
    without.logits.Set(i, -INFINITY);
  }
  EXPECT_EQ(sample.Run(backend), without.Run(reference));
  for (float value : {NAN, INFINITY, -INFINITY}) {  // nothing can be drawn by the rule: any token, but one of the vocabulary
    sample.logits.Fill(value);
    for (int32_t token : sample.Run(backend)) EXPECT_TRUE(token >= 0 && token < vocab) << value;
    HostTensor target(DType::kF32, {rows}), ranks(DType::kI32, {rows}), ids(DType::kI32, {rows, 5}),
        top(DType::kF32, {rows, 5});
    backend.ops->Logprobs({.target_logprobs = target,
                           .target_ranks = ranks,
                           .top_ids = ids,
                           .top_logprobs = top,
                           .logits = sample.logits,
                           .targets = HostTensor({rows}, std::vector<int32_t>(rows, 1))});
    const auto* order = reinterpret_cast<const int32_t*>(ids.bytes.data());
    for (int64_t i = 0; i < rows * 5; ++i) EXPECT_EQ(order[i], i % 5);
  }
}

using Bytes = std::vector<uint8_t>;

std::vector<Bytes> Logprobs(Backend& backend, const HostTensor& logits, int64_t num_top) {
  const int64_t rows = logits.shape[0];
  HostTensor target(DType::kF32, {rows}), ranks(DType::kI32, {rows}), ids(DType::kI32, {rows, num_top}),
      top(DType::kF32, {rows, num_top});
  backend.ops->Logprobs({.target_logprobs = target,
                         .target_ranks = ranks,
                         .top_ids = ids,
                         .top_logprobs = top,
                         .logits = logits,
                         .targets = HostTensor({rows}, std::vector<int32_t>(rows, 5))});
  return {target.bytes, ranks.bytes, ids.bytes, top.bytes};
}

TEST(Tokens, LogprobsOfManyChunksEqualTheReference) {
  Backend backend = BackendOf("cuda"), reference = MakeReferenceBackend();
  const HostTensor logits = Random(9).Tensor(DType::kF32, {2, 40001}, 3);
  EXPECT_EQ(Logprobs(backend, logits, 30), Logprobs(reference, logits, 30));
}

TEST(Tokens, RowsAreIndependentOfTheirBatch) {
  Backend backend = BackendOf("cuda");
  const int64_t rows = 130, vocab = 2100, num_top = 3;
  const SampleCase all = {Random(10).Tensor(DType::kF32, {rows, vocab}, 2), kWays};
  const std::vector<int32_t> tokens = all.Run(backend);
  const std::vector<Bytes> logprobs = Logprobs(backend, all.logits, num_top);
  for (int64_t count : {1, 2, 3, 7, 16, 17, 64}) {
    const int64_t first = (rows - count) / 2;
    const SampleCase some = {RowsOf(all.logits, first, count), kWays, static_cast<int>(first)};
    EXPECT_EQ(some.Run(backend), std::vector<int32_t>(tokens.begin() + first, tokens.begin() + first + count))
        << count << " rows";
    const std::vector<Bytes> some_logprobs = Logprobs(backend, some.logits, num_top);
    for (size_t i = 0; i < logprobs.size(); ++i) {
      const size_t row_bytes = logprobs[i].size() / rows;
      EXPECT_EQ(some_logprobs[i],
                Bytes(logprobs[i].begin() + first * row_bytes, logprobs[i].begin() + (first + count) * row_bytes))
          << count << " rows";
    }
  }
}

TEST(Tokens, BitsAreEqualInAnyOrderOfThreads) {
  Backend backend = BackendOf("cuda");
  const SampleCase sample = {Random(11).Tensor(DType::kF32, {8, 5000}, 2), kWays};
  const std::vector<int32_t> tokens = sample.Run(backend);
  const std::vector<Bytes> logprobs = Logprobs(backend, sample.logits, 10);
  const HostTensor routed = Random(12).Tensor(DType::kF32, {9, 100});
  const auto route = [&] {
    HostTensor experts(DType::kI32, {9, 6}), weights(DType::kF32, {9, 6});
    backend.ops->MoeRoute({.experts = experts, .weights = weights, .logits = routed, .renormalize = true});
    return std::pair(experts.bytes, weights.bytes);
  };
  const auto routes = route();
  for (uint64_t seed : {1, 2, 3}) {
    cuda_host::SetFiberSeed(seed);
    EXPECT_EQ(sample.Run(backend), tokens);
    EXPECT_EQ(Logprobs(backend, sample.logits, 10), logprobs);
    EXPECT_EQ(route(), routes);
  }
  cuda_host::SetFiberSeed(0);
}

TEST(Tokens, StepsNeitherAllocateNorWait) {
  Backend backend = BackendOf("cuda");
  const SampleCase sample = {Random(13).Tensor(DType::kF32, {3, 2100}, 2), kWays};
  sample.Run(backend);
  Logprobs(backend, sample.logits, 4);
  for (const char* function :
       {"cudaMalloc", "cudaFree", "cudaStreamSynchronize", "cudaMemcpyAsync up", "cudaMemcpyAsync down"}) {
    const int64_t calls = cuda_host::CallsOf(function);
    sample.Run(backend);
    Logprobs(backend, sample.logits, 4);
    EXPECT_EQ(cuda_host::CallsOf(function), calls) << function;
  }
}

}  // namespace
}  // namespace plumbline::cuda
