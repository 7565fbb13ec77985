// CausalConv and GatedDeltaNet of every CPU arithmetic: equal to the reference within rounding, and with outputs and
// states whose bits depend on the sequence and the roles of its tokens alone.
#include <map>

#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

struct Geometry {
  int64_t key_heads, value_heads, key_dim, value_dim;
  GateActivation activation = GateActivation::kSilu;
  int64_t channels() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
  int64_t gates() const { return value_heads * value_dim + 2 * value_heads; }
};

// What a run of several steps leaves: rows by (sequence, position), states by sequence.
struct Outcome {
  std::map<std::pair<int, int>, std::vector<float>> rows;
  std::map<int, std::vector<float>> states;
  std::vector<float> Flat() const {
    std::vector<float> all;
    for (const auto& [key, row] : rows) all.insert(all.end(), row.begin(), row.end());
    return all;
  }
  std::vector<float> FlatStates() const {
    std::vector<float> all;
    for (const auto& [key, state] : states) all.insert(all.end(), state.begin(), state.end());
    return all;
  }
};

// Sequences of `length` positions, all inputs known beforehand; slots start with NaN in them.
class World {
 public:
  World(Geometry geometry, int num_sequences, int length) : geometry_(geometry), num_sequences_(num_sequences) {
    Random random(11);
    for (int s = 0; s < num_sequences; ++s) {
      conv_.push_back(random.Tensor(DType::kF32, {length, geometry.channels()}));
      gates_.push_back(random.Tensor(DType::kF32, {length, geometry.gates()}));
    }
    a_log_ = random.Tensor(DType::kF32, {geometry.value_heads}, 1.5, -1);  // decays from 0.99 to e^-20 and below
    dt_bias_ = random.Tensor(DType::kF32, {geometry.value_heads}, 0.5, -1);
    norm_ = random.Tensor(DType::kF32, {geometry.value_dim}, 0.2, 1);
    conv_weight_ = random.Tensor(DType::kF32, {geometry.channels(), 4}, 0.5);
  }

  Outcome DeltaNet(Backend& backend, DType dtype, const std::vector<std::vector<StepPart>>& steps,
                   uint32_t slot_seed = 1) const {
    const int64_t heads = geometry_.value_heads, columns = heads * geometry_.value_dim;
    HostTensor state(DType::kF32, {num_sequences_ + 2, heads, geometry_.key_dim, geometry_.value_dim});
    return Run(steps, slot_seed, columns, state, [&](const StepRows& rows, const std::vector<StepPart>& parts) {
      const HostTensor conv = Gather(conv_, parts), gates = Gather(gates_, parts);
      HostTensor out(dtype, {conv.shape[0], columns});
      backend.ops->GatedDeltaNet({.out = out, .state = state, .conv = conv, .gates = gates, .a_log = a_log_,
                                  .dt_bias = dt_bias_, .norm = norm_, .sequences = rows.view(),
                                  .num_key_heads = geometry_.key_heads, .eps = 1e-6f,
                                  .activation = geometry_.activation});
      return out;
    });
  }

  Outcome Conv(Backend& backend, DType dtype, const std::vector<std::vector<StepPart>>& steps,
               uint32_t slot_seed = 1) const {
    HostTensor state(dtype, {num_sequences_ + 2, geometry_.channels(), 3});
    Random random(12);
    std::vector<HostTensor> inputs;
    for (const HostTensor& sequence : conv_) inputs.push_back(random.Tensor(dtype, sequence.shape));
    return Run(steps, slot_seed, geometry_.channels(), state, [&](const StepRows& rows,
                                                                  const std::vector<StepPart>& parts) {
      const HostTensor x = Gather(inputs, parts);
      HostTensor out(DType::kF32, x.shape);
      backend.ops->CausalConv({.out = out, .state = state, .x = x, .weight = conv_weight_, .sequences = rows.view()});
      return out;
    });
  }

 private:
  template <typename Op>
  Outcome Run(const std::vector<std::vector<StepPart>>& steps, uint32_t slot_seed, int64_t columns, HostTensor& state,
              const Op& op) const {
    state.Fill(NAN);
    const std::vector<int32_t> slots = Random(slot_seed).Permutation(num_sequences_ + 2);
    Outcome outcome;
    for (const std::vector<StepPart>& parts : steps) {
      const HostTensor out = op(StepRows(parts, {}, slots), parts);
      int64_t row = 0;
      for (const StepPart& part : parts) {
        for (int i = 0; i < part.num_rows; ++i) {
          outcome.rows[{part.sequence, part.start + i}] = out.Row(row++, columns);
        }
      }
    }
    const int64_t size = state.size() / state.shape[0];
    for (const auto& parts : steps) {
      for (const StepPart& part : parts) outcome.states[part.sequence] = state.Row(slots[part.sequence], size);
    }
    return outcome;
  }
  // The rows of a step, each from its sequence's tensor.
  static HostTensor Gather(const std::vector<HostTensor>& sequences, const std::vector<StepPart>& parts) {
    int64_t num_rows = 0;
    for (const StepPart& part : parts) num_rows += part.num_rows;
    HostTensor gathered(sequences[0].dtype, {num_rows, sequences[0].shape[1]});
    const size_t row_bytes = gathered.bytes.size() / num_rows;
    uint8_t* to = gathered.bytes.data();
    for (const StepPart& part : parts) {
      const uint8_t* from = sequences[part.sequence].bytes.data() + part.start * row_bytes;
      std::memcpy(to, from, part.num_rows * row_bytes);
      to += part.num_rows * row_bytes;
    }
    return gathered;
  }

  Geometry geometry_;
  int num_sequences_;
  std::vector<HostTensor> conv_, gates_;
  HostTensor a_log_, dt_bias_, norm_, conv_weight_;
};

class DeltaNetTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Cpu, DeltaNetTest, testing::ValuesIn(TestedArithmetics()));

const std::vector<std::vector<StepPart>> kMixedSteps = {
    {{0, 0, 130, 130}, {1, 0, 64, 64}, {2, 0, 1, 0}},
    {{1, 64, 20, 17}, {2, 1, 3, 0}, {0, 130, 1, 0}},
    {{0, 131, 5, 0}, {3, 0, 16, 7}}};

TEST_P(DeltaNetTest, EqualsReferenceWithinRounding) {
  Backend backend = BackendOf(GetParam()), reference = MakeReferenceBackend();
  for (const Geometry& geometry : {Geometry{2, 2, 16, 16}, Geometry{1, 2, 32, 64, GateActivation::kSigmoid},
                                   Geometry{2, 6, 24, 40}, Geometry{1, 3, 128, 128}, Geometry{1, 1, 8, 20}}) {
    const World world(geometry, 4, 140);
    for (DType dtype : kActTypes) {
      const Outcome expected = world.DeltaNet(reference, dtype, kMixedSteps);
      const Outcome actual = world.DeltaNet(backend, dtype, kMixedSteps);
      const std::string what = GetParam() + " " + NameOf(dtype) + " key dim " + std::to_string(geometry.key_dim);
      // Sums of up to 64 + P terms below 1 times values below 5.
      ExpectNear(actual.FlatStates(), expected.FlatStates(), {1e-5, 5 * (64 + 128) * 0x1p-24}, what + " state");
      // The norm divides by rms(o), which may be small beside the terms of o.
      ExpectNear(actual.Flat(), expected.Flat(), {2.01 * UnitOf(dtype) + 1e-4, 1e-3}, what);
    }
  }
}

TEST_P(DeltaNetTest, BitsDependOnTheSequenceAlone) {
  Backend one = BackendOf(GetParam(), 1), three = BackendOf(GetParam(), 3);
  for (const Geometry& geometry : {Geometry{1, 3, 32, 48}, Geometry{2, 2, 24, 20}}) {
    const World world(geometry, 3, 210);
    const auto expect_same = [&](const Outcome& outcome, const Outcome& whole, const char* what) {
      for (const auto& [key, row] : outcome.rows) {
        if (key.first != 0) continue;
        EXPECT_EQ(row, whole.rows.at(key)) << what << " position " << key.second;
      }
      EXPECT_EQ(outcome.states.at(0), whole.states.at(0)) << what;
    };
    for (DType dtype : {DType::kBf16, DType::kF32}) {
      const auto run = [&](bool conv, Backend& backend, const std::vector<std::vector<StepPart>>& steps, uint32_t seed) {
        return conv ? world.Conv(backend, dtype, steps, seed) : world.DeltaNet(backend, dtype, steps, seed);
      };
      for (bool conv : {false, true}) {
        const Outcome whole = run(conv, one, {{{0, 0, 210, 200}}}, 1);
        expect_same(run(conv, three, {{{0, 0, 64, 64}}, {{0, 64, 128, 128}}, {{0, 192, 18, 8}}}, 2), whole, "chunks");
        expect_same(run(conv, three, {{{1, 0, 70, 70}, {0, 0, 128, 128}, {2, 0, 2, 0}},
                                      {{0, 128, 72, 72}, {1, 70, 1, 0}},
                                      {{2, 2, 1, 0}, {0, 200, 1, 0}},
                                      {{0, 201, 9, 0}, {1, 71, 3, 0}}}, 3), whole, "batch");
        std::vector<std::vector<StepPart>> steps = {{{0, 0, 200, 200}}};
        for (int position = 200; position < 210; ++position) steps.push_back({{0, position, 1, 0}});
        expect_same(run(conv, one, steps, 4), whole, "decode");
      }
    }
  }
}

// A prompt that ends inside a chunk gives its rows the bits of a longer one.
TEST_P(DeltaNetTest, LaterPromptRowsDoNotShow) {
  Backend backend = BackendOf(GetParam());
  const World world({1, 2, 32, 32}, 1, 128);
  const Outcome whole = world.DeltaNet(backend, DType::kF32, {{{0, 0, 128, 128}}});
  for (int length : {1, 2, 15, 16, 17, 63, 65, 100}) {
    for (const auto& [key, row] : world.DeltaNet(backend, DType::kF32, {{{0, 0, length, length}}}).rows) {
      EXPECT_EQ(row, whole.rows.at(key)) << length << " rows, position " << key.second;
    }
  }
}

// Control: a role, and so a border of the chunked form, that lies elsewhere shows in the bits, though not in the values.
TEST_P(DeltaNetTest, ChunkBordersShowInTheBits) {
  Backend backend = BackendOf(GetParam());
  const World world({1, 2, 32, 32}, 1, 64);
  const Outcome prompt = world.DeltaNet(backend, DType::kF32, {{{0, 0, 64, 64}}});
  const Outcome generated = world.DeltaNet(backend, DType::kF32, {{{0, 0, 64, 20}}});
  ExpectNear(generated.Flat(), prompt.Flat(), {1e-4, 1e-3}, "roles");
  EXPECT_NE(generated.Flat(), prompt.Flat());
  EXPECT_NE(generated.states, prompt.states);
}

TEST_P(DeltaNetTest, ConvEqualsReferenceWithinRounding) {
  Backend backend = BackendOf(GetParam()), reference = MakeReferenceBackend();
  for (const Geometry& geometry : {Geometry{2, 2, 16, 16}, Geometry{1, 3, 13, 29}, Geometry{1, 1, 128, 128}}) {
    const World world(geometry, 4, 140);
    for (DType dtype : kActTypes) {
      const Outcome expected = world.Conv(reference, dtype, kMixedSteps), actual = world.Conv(backend, dtype, kMixedSteps);
      EXPECT_EQ(actual.states, expected.states) << "the state holds inputs";
      ExpectNear(actual.Flat(), expected.Flat(), {1e-6, 16 * 6 * 0x1p-24}, GetParam() + " " + NameOf(dtype));
    }
  }
}

}  // namespace
}  // namespace plumbline
