// Linears and experts over the host's CUDA: bits in any order of the threads, roles side by side, and what the step
// path may call.
#include "tests/linear_testing.h"

#include "tests/cuda_host/cuda_runtime.h"

namespace plumbline {
namespace {

using Bytes = std::vector<uint8_t>;

// Experts of random weights; token t goes to experts t % 3, ... of E, so that some get many tokens and some none.
struct Experts {
  static constexpr int64_t kExperts = 12, kTopK = 8, kHidden = 24, kInner = 40;

  Experts(Backend& backend, DType dtype)
      : backend(backend),
        up{.n = 2 * kInner, .k = kHidden, .dtype = dtype, .gated = true},
        down{.n = kHidden, .k = kInner, .num_leaves = 8, .dtype = dtype},
        gate_ups(Packed(up, 1)),
        downs(Packed(down, 2)) {}

  Bytes Run(const Matrix& x, int64_t num_generated) {
    std::vector<int32_t> chosen;
    for (int64_t i = 0; i < x.rows * kTopK; ++i) {
      const double first = x.values[i / kTopK * kHidden];  // of the token alone
      chosen.push_back(static_cast<int32_t>(i % kTopK + (first < -0.5 ? 0 : first < 0.5 ? 1 : 2)));
    }
    const HostTensor experts({x.rows, kTopK}, chosen);
    HostTensor weights(DType::kF32, {x.rows, kTopK}), out(DType::kF32, {x.rows, kHidden});
    for (int64_t i = 0; i < weights.size(); ++i) {
      weights.Set(i, static_cast<float>(x.values[i / kTopK * kHidden + 1 + i % kTopK]));
    }
    backend.ops->MoeMlp({.out = out, .x = x.view(), .experts = experts, .weights = weights,
                         .gate_up = gate_ups.View(DType::kU8, {kExperts, backend.ops->PackedBytes(up)}),
                         .down = downs.View(DType::kU8, {kExperts, backend.ops->PackedBytes(down)}),
                         .gate_up_shape = up, .down_shape = down, .num_generated = num_generated});
    return out.bytes;
  }
  Buffer Packed(const LinearShape& shape, uint32_t seed) {
    const int64_t size = backend.ops->PackedBytes(shape);
    Buffer packed = backend.device->Allocate(kExperts * size);
    for (int64_t e = 0; e < kExperts; ++e) {
      const Matrix weight = RandomMatrix(shape.dtype, shape.n, shape.k, static_cast<uint32_t>(seed + 10 * e));
      backend.ops->PackLinear({.out = packed.View(DType::kU8, {kExperts, size}).Rows(e, 1).Reshape({size}),
                               .shape = shape, .source = weight.view()});
    }
    return packed;
  }

  Backend& backend;
  LinearShape up, down;
  Buffer gate_ups, downs;
};

template <typename T>
Bytes BytesOf(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// The outputs of a linear with leaves, a gated one and experts, rows [0, num_generated) generated.
struct Outputs {
  Bytes linear, gated, experts;
  bool operator==(const Outputs&) const = default;
};
class Products {
 public:
  Products(Backend& backend, DType dtype)
      : linear_(MakeCase(backend, {.n = 70, .k = 8 * 96, .num_leaves = 8, .dtype = dtype},
                         {RandomMatrix(dtype, 70, 8 * 96, 1)})),
        gated_(MakeCase(backend, {.n = 140, .k = 320, .dtype = dtype, .gated = true}, {RandomMatrix(dtype, 140, 320, 2)})),
        experts_(backend, dtype),
        x_(RandomMatrix(dtype, 1000, 8 * 96, 3)),
        gated_x_(RandomMatrix(dtype, 1000, 320, 4)),
        experts_x_(RandomMatrix(dtype, 1000, Experts::kHidden, 5)) {}

  Outputs Run(int64_t num_rows, int64_t num_generated) {
    linear_.num_generated = gated_.num_generated = num_generated;
    return {BytesOf(linear_.Run(x_.Rows(0, num_rows))), gated_.RunGated(gated_x_.Rows(0, num_rows)).bytes,
            experts_.Run(experts_x_.Rows(0, num_rows), num_generated)};
  }
  Bytes RunExperts(int64_t first, int64_t num_rows, int64_t num_generated) {
    return experts_.Run(experts_x_.Rows(first, num_rows), num_generated);
  }

 private:
  LinearCase linear_, gated_;
  Experts experts_;
  Matrix x_, gated_x_, experts_x_;
};

class CudaLinear : public testing::TestWithParam<DType> {
 protected:
  Backend backend_ = MakeCudaBackend(0);
  Products products_{backend_, GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Types, CudaLinear, testing::ValuesIn(kActTypes),
                         [](const auto& info) { return NameOf(info.param); });

TEST_P(CudaLinear, BitsAreTheSameInAnyOrderOfThreads) {
  const Outputs expected = products_.Run(33, 11);
  for (uint64_t seed : {1, 2, 3}) {
    cuda_host::SetFiberSeed(seed);
    EXPECT_EQ(products_.Run(33, 11), expected) << seed;
  }
  cuda_host::SetFiberSeed(0);
}

// A row has the bits of its role whatever the others' roles are.
TEST_P(CudaLinear, RolesStandSideBySide) {
  const int64_t num_rows = 36;
  const Outputs prompt = products_.Run(num_rows, 0), generated = products_.Run(num_rows, num_rows);
  const auto mixed = [&](Bytes Outputs::*part, int64_t num_generated) {
    Bytes bytes = prompt.*part;
    std::copy_n((generated.*part).begin(), bytes.size() / num_rows * num_generated, bytes.begin());
    return bytes;
  };
  // Control: the roles' sums differ in order, but in f32, where one kernel serves both.
  if (GetParam() != DType::kF32) {
    EXPECT_NE(prompt.linear, generated.linear);
  }
  for (int64_t num_generated : {1, 16, 17, 35}) {
    const Outputs outputs = products_.Run(num_rows, num_generated);
    EXPECT_EQ(outputs.linear, mixed(&Outputs::linear, num_generated)) << num_generated;
    EXPECT_EQ(outputs.gated, mixed(&Outputs::gated, num_generated)) << num_generated;
    EXPECT_EQ(outputs.experts, mixed(&Outputs::experts, num_generated)) << num_generated;
  }
}

// With more pairs than the workspace takes at once, the leaves come in several passes.
TEST_P(CudaLinear, PassesOverLeavesKeepTheBits) {
  const int64_t num_rows = 600, some = 7;  // 4800 pairs: two leaves at once
  for (bool is_generated : {false, true}) {
    const Bytes all = products_.RunExperts(0, num_rows, is_generated ? num_rows : 0);
    const size_t row_bytes = all.size() / num_rows;
    for (int64_t first : {int64_t{0}, int64_t{301}, num_rows - some}) {
      const Bytes part = products_.RunExperts(first, some, is_generated ? some : 0);
      EXPECT_EQ(part, Bytes(all.begin() + first * row_bytes, all.begin() + (first + some) * row_bytes)) << first;
    }
  }
}

TEST_P(CudaLinear, StepsNeitherAllocateNorCopyNorWait) {
  const auto calls = [] {
    std::vector<int64_t> counts;
    for (const char* name : {"cudaMalloc", "cudaFree", "cudaMemcpyAsync up", "cudaMemcpyAsync down", "cudaStreamSynchronize",
                             "cudaEventSynchronize"}) {
      counts.push_back(cuda_host::CallsOf(name));
    }
    return counts;
  };
  products_.Run(20, 20);  // the workspace grows to the largest step's
  products_.Run(20, 0);
  const std::vector<int64_t> before = calls();
  const int64_t launches = cuda_host::CallsOf("Launch");
  products_.Run(20, 5);
  products_.Run(3, 1);
  EXPECT_EQ(calls(), before);
  EXPECT_GT(cuda_host::CallsOf("Launch"), launches);
}

}  // namespace
}  // namespace plumbline
