// Tensors that the contract calls spread: an op gives the same bits when their rows lie apart, and leaves alone what lies
// between them.
#include <functional>

#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

constexpr int64_t kRows = 70;
constexpr uint8_t kBetween = 0xa5;

// A matrix of `columns`, rows `gap` elements further apart than that.
class SpreadMatrix {
 public:
  SpreadMatrix(DType dtype, int64_t columns, int64_t gap)
      : columns_(columns), dense_(dtype, {kRows, columns}), stride_(columns + gap),
        bytes_(kRows * stride_ * SizeOf(dtype), kBetween) {}
  SpreadMatrix(const HostTensor& from, int64_t gap) : SpreadMatrix(from.dtype, from.shape[1], gap) {
    const size_t row_bytes = columns_ * SizeOf(from.dtype);
    for (int64_t r = 0; r < kRows; ++r) std::memcpy(view().At(r, 0), from.bytes.data() + r * row_bytes, row_bytes);
  }

  Tensor view() { return {bytes_.data(), dense_.dtype, dense_.shape, stride_}; }

  // The elements; a failure when something else was written.
  std::vector<float> Floats() {
    const size_t size = SizeOf(dense_.dtype);
    for (int64_t r = 0; r < kRows; ++r) {
      std::memcpy(dense_.bytes.data() + r * columns_ * size, view().At(r, 0), columns_ * size);
      for (size_t i = (r * stride_ + columns_) * size; i < (r + 1) * stride_ * size; ++i) {
        EXPECT_EQ(bytes_[i], kBetween) << "behind row " << r;
      }
    }
    return dense_.Floats();
  }

 private:
  int64_t columns_;
  HostTensor dense_;
  int64_t stride_;
  std::vector<uint8_t> bytes_;
};

class SpreadRows : public testing::TestWithParam<std::string> {
 protected:
  // What `run` returns must not depend on the gap that it is given, 0 among them.
  void ExpectSameBits(const std::function<std::vector<float>(DType dtype, int64_t gap)>& run) {
    for (DType dtype : kActTypes) {
      const std::vector<float> dense = run(dtype, 0);
      for (int64_t gap : {int64_t{8}, SpreadStride(dtype, 96) - 96, int64_t{1000}}) {
        EXPECT_EQ(run(dtype, gap), dense) << NameOf(dtype) << " gap " << gap;
      }
    }
  }
  // Packed weights [count, PackedBytes], in memory of the device.
  Buffer Packed(const LinearShape& shape, Random& random, int64_t count = 1) {
    const int64_t size = backend_.ops->PackedBytes(shape);
    Buffer packed = backend_.device->Allocate(count * size);
    backend_.device->Zero(packed.View(DType::kU8, {count * size}));
    for (int64_t i = 0; i < count; ++i) {
      const HostTensor weight = random.Tensor(shape.dtype, {shape.n, shape.k});
      const Tensor out = packed.View(DType::kU8, {count, size}).Rows(i, 1).Reshape({size});
      backend_.ops->PackLinear({.out = out, .shape = shape, .source = weight});
    }
    return packed;
  }
  Tensor View(Buffer& packed) { return packed.View(DType::kU8, {static_cast<int64_t>(packed.num_bytes())}); }

  Backend backend_ = BackendOf(GetParam());
};

std::vector<std::string> Arithmetics() {
  std::vector<std::string> all = TestedArithmetics();
#ifndef PLUMBLINE_TEST_CUDA
  all.push_back("reference-1");
#endif
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, SpreadRows, testing::ValuesIn(Arithmetics()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(SpreadRows, Linear) {
  for (int num_leaves : {1, 8}) {
    ExpectSameBits([&](DType dtype, int64_t gap) {
      Random random(1);
      const LinearShape shape = {.n = 100, .k = 256, .num_leaves = num_leaves, .dtype = dtype};
      Buffer packed = Packed(shape, random);
      SpreadMatrix x(random.Tensor(dtype, {kRows, shape.k}), gap), rounded(dtype, 70, gap);
      HostTensor out(DType::kF32, {kRows, 30});
      backend_.ops->Linear({.out = out, .x = x.view(), .weight = View(packed), .shape = shape, .rounded = rounded.view()});
      std::vector<float> all = rounded.Floats(), rest = out.Floats();
      all.insert(all.end(), rest.begin(), rest.end());
      return all;
    });
  }
}

TEST_P(SpreadRows, GatedLinear) {
  ExpectSameBits([&](DType dtype, int64_t gap) {
    Random random(2);
    const LinearShape shape = {.n = 192, .k = 96, .dtype = dtype, .gated = true};
    Buffer packed = Packed(shape, random);
    SpreadMatrix x(random.Tensor(dtype, {kRows, shape.k}), gap), out(dtype, 96, gap);
    backend_.ops->GatedLinear({.out = out.view(), .x = x.view(), .weight = View(packed), .shape = shape});
    return out.Floats();
  });
}

TEST_P(SpreadRows, ReduceAddRmsNorm) {
  ExpectSameBits([&](DType dtype, int64_t gap) {
    Random random(3);
    HostTensor h = random.Tensor(DType::kF32, {kRows, 96});
    const HostTensor weight = random.Tensor(DType::kF32, {96});
    SpreadMatrix out(dtype, 96, gap);
    backend_.ops->ReduceAddRmsNorm({.out = out.view(), .h = h, .weight = weight, .eps = 1e-6f});
    return out.Floats();
  });
}

TEST_P(SpreadRows, Attention) {
  ExpectSameBits([&](DType dtype, int64_t gap) {
    Random random(4);
    const HostTensor q = random.Tensor(dtype, {kRows, 4, 32});
    const HostTensor keys = random.Tensor(dtype, {2, 2, kBlockTokens, 32}), values = random.Tensor(dtype, keys.shape);
    const StepRows rows({{0, 0, kRows, kRows}}, {{1, 0}}, {});
    SpreadMatrix out(dtype, 4 * 32, gap);
    backend_.ops->Attention({.out = out.view(), .q = q, .k_cache = keys, .v_cache = values, .sequences = rows.view(),
                             .scale = 0.2f});
    return out.Floats();
  });
}

TEST_P(SpreadRows, ConvolutionAndDeltaNet) {
  ExpectSameBits([&](DType dtype, int64_t gap) {
    Random random(5);
    constexpr int64_t kHeads = 2, kDim = 32, kChannels = 3 * kHeads * kDim;
    const HostTensor weight = random.Tensor(DType::kF32, {kChannels, 4}, 0.5);
    const HostTensor per_head = random.Tensor(DType::kF32, {kHeads});
    const HostTensor norm = random.Tensor(DType::kF32, {kDim});
    const HostTensor gates = random.Tensor(DType::kF32, {kRows, kHeads * (kDim + 2)});
    HostTensor conv_state(dtype, {1, kChannels, 3}), state(DType::kF32, {1, kHeads, kDim, kDim});
    HostTensor convolved(DType::kF32, {kRows, kChannels});
    SpreadMatrix x(random.Tensor(dtype, {kRows, kChannels}), gap), out(dtype, kHeads * kDim, gap);
    const StepRows rows({{0, 0, kRows, kRows - 2}}, {}, {0});
    backend_.ops->ConvGatedDeltaNet(
        {.conv = {.out = convolved, .state = conv_state, .x = x.view(), .weight = weight, .sequences = rows.view()},
         .delta = {.out = out.view(), .state = state, .conv = convolved, .gates = gates, .a_log = per_head,
                   .dt_bias = per_head, .norm = norm, .sequences = rows.view(), .num_key_heads = kHeads, .eps = 1e-6f}});
    return out.Floats();
  });
}

TEST_P(SpreadRows, MoeMlp) {
  ExpectSameBits([&](DType dtype, int64_t gap) {
    Random random(6);
    const LinearShape up = {.n = 128, .k = 96, .dtype = dtype, .gated = true};
    const LinearShape down = {.n = 96, .k = 64, .num_leaves = 2, .dtype = dtype};
    Buffer gate_ups = Packed(up, random, 2), downs = Packed(down, random, 2);
    std::vector<int32_t> chosen(kRows);
    for (int64_t t = 0; t < kRows; ++t) chosen[t] = static_cast<int32_t>(t % 2);
    const HostTensor experts({kRows, 1}, chosen), weights = random.Tensor(DType::kF32, {kRows, 1});
    HostTensor out(DType::kF32, {kRows, 96});
    SpreadMatrix x(random.Tensor(dtype, {kRows, 96}), gap);
    backend_.ops->MoeMlp({.out = out,
                          .x = x.view(),
                          .experts = experts,
                          .weights = weights,
                          .gate_up = gate_ups.View(DType::kU8, {2, backend_.ops->PackedBytes(up)}),
                          .down = downs.View(DType::kU8, {2, backend_.ops->PackedBytes(down)}),
                          .gate_up_shape = up,
                          .down_shape = down});
    return out.Floats();
  });
}

}  // namespace
}  // namespace plumbline
