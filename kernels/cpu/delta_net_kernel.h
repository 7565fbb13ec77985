// The gated delta rule for all rows of one sequence in some neighbouring heads (arXiv:2412.06464), in f32.
// Prompt rows: the chunked form on kChunk rows. With G the running sum of log decays in the chunk, S the state before it:
//   R = diag(beta) (V - diag(e^G) K S);  (I + M) X = R, M_ij = beta_i (k_i . k_j) e^(G_i - G_j) below the diagonal
//   O = diag(e^G) Q S + (lower(Q K^T) . e^(G_i - G_j)) X;  S <- e^G_last S + K^T diag(e^(G_last - G)) X
// A row sums over earlier rows only, in ascending order, so a short chunk gives its rows the bits of a full one.
// Generated rows: the recurrence.
#pragma once

#include "kernels/cpu/delta_net_recurrent.h"
#include "kernels/cpu/delta_net_rows.h"
#include "kernels/cpu/fetch.h"
#include "kernels/cpu/flush_subnormals.h"

namespace plumbline {
namespace {

// Side work: Step() does a little of something that has nothing to do with the products at hand. Tile products take such
// steps between their tiles, since vector instructions run beside them; other products take none.
struct NoSideWork {
  void Step() {}
};

// Side work that also asks for the rows that the gated norm of `count` rows in a head reads and writes: they are a page or
// more apart, which the processor does not foresee.
template <typename Side>
class NormRowsAhead {
 public:
  NormRowsAhead(Side& side, const DeltaNetTask& task, int head, int count)
      : side_(side), z_(task.z + head * task.value_dim), z_stride_(task.gates_stride), value_dim_(task.value_dim),
        out_(static_cast<const char*>(task.out) + int64_t{head} * task.value_dim * task.out_bytes),
        out_stride_(task.out_stride * task.out_bytes), out_bytes_(task.value_dim * task.out_bytes), count_(count) {}
  void Step() {
    side_.Step();
    if (row_ < count_) Row();
  }
  void Finish() {
    while (row_ < count_) Row();
  }

 private:
  void Row() {
    for (int c = 0; c < value_dim_; c += 16) __builtin_prefetch(z_ + row_ * z_stride_ + c, 0, 2);
    FetchForWriting(out_ + row_ * out_stride_, out_bytes_);
    ++row_;
  }
  Side& side_;
  const float* z_;
  const int64_t z_stride_;
  const int value_dim_;
  const char* out_;
  const int64_t out_stride_;  // in bytes
  const int out_bytes_, count_;
  int row_ = 0;
};

// Below the diagonal s.weights[i][j] = -beta_i kk[i][j] e^(G_i - G_j); there and on it the products' own weights are
// qk[i][j] e^(G_i - G_j), and zero in the rest of the 16 columns and in 16 more, where blocks of rows reach.
template <typename Simd, typename Products>
void DecayedWeights(const DeltaNetScratch& s, const Products& products, int count) {
  for (int i = 0; i < count; ++i) {
    const auto high = Simd::Set(s.decay[i]), low = Simd::Set(s.decay_low[i]), factor = Simd::Set(-s.beta[i]);
    for (int j = 0; j <= i; j += 16) {
      // G is carried in two floats: the difference of two large sums keeps its digits.
      const auto difference = Simd::Add(Simd::Sub(high, Simd::Load(s.decay + j)),
                                        Simd::Sub(low, Simd::Load(s.decay_low + j)));
      const auto decay = Simd::Exp(difference);
      const int64_t at = i * kChunkStride + j;
      auto weight = Simd::Mul(Simd::Mul(factor, Simd::Load(s.kk + at)), decay);
      auto value_weight = Simd::Mul(Simd::Load(s.qk + at), decay);
      if (i - j < 16) {
        weight = Simd::FirstN(weight, i - j, 0.0f);
        value_weight = Simd::FirstN(value_weight, Least(16, i - j + 1), 0.0f);
      }
      Simd::Store(s.weights + at, weight);
      products.StoreWeights(i, j, value_weight);
    }
    if (i < kChunk - 16) products.StoreWeights(i, i / 16 * 16 + 16, Simd::Zero());
  }
}

// Rows [0, rows) of 16 columns of x, after the blocks above them have been taken off.
template <typename Simd>
void SolveBlock(const float* w, float* x, int64_t stride, int rows) {
  typename Simd::F lanes[16];
  if (rows == 16) {  // in registers
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) lanes[i] = Simd::Load(x + i * stride);
#pragma GCC unroll 16
    for (int j = 0; j < 15; ++j) {
#pragma GCC unroll 16
      for (int i = j + 1; i < 16; ++i) {
        lanes[i] = Simd::Fma(Simd::Set(w[i * kChunkStride + j]), lanes[j], lanes[i]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) Simd::Store(x + i * stride, lanes[i]);
    return;
  }
  for (int i = 0; i < rows; ++i) lanes[i] = Simd::Load(x + i * stride);
  for (int j = 0; j + 1 < rows; ++j) {
    for (int i = j + 1; i < rows; ++i) {
      lanes[i] = Simd::Fma(Simd::Set(w[i * kChunkStride + j]), lanes[j], lanes[i]);
    }
  }
  for (int i = 0; i < rows; ++i) Simd::Store(x + i * stride, lanes[i]);
}

// Rows [first, count) of x <- (I - W)^-1 x, W = s.weights strictly lower triangular, columns before `first` aside: blocks of
// 16 rows, rows in order inside a block.
template <typename Simd>
void SolveUnitLower(const DeltaNetScratch& s, int first, int count, int num_columns) {
  for (int block = first; block < count; block += 16) {
    const int rows = Least(16, count - block);
    const float* w = s.weights + block * kChunkStride;
    if (block > first) {
      Multiply<Simd>({.a = w + first, .a_stride = kChunkStride, .b = s.x + first * s.value_stride,
                      .b_stride = s.value_stride, .c = s.x + block * s.value_stride, .c_stride = s.value_stride,
                      .m = rows, .n = num_columns, .k = block - first, .c_scale = 1});
    }
    for (int column = 0; column < num_columns; column += 16) {
      SolveBlock<Simd>(w + block, s.x + block * s.value_stride + column, s.value_stride, rows);
    }
  }
}

// The products of a task's chunks, each of `count` rows, in f32.
template <typename Simd>
class F32ChunkProducts {
 public:
  static constexpr bool kTakesSteps = false;  // of side work
  static int64_t ScratchFloats(int key_dim, int value_dim, int num_heads) {
    return DeltaNetScratchFloats(key_dim, value_dim, num_heads);
  }
  F32ChunkProducts(const DeltaNetTask&, const DeltaNetScratch& s) : s_(s) {}

  // Once the states of the task are in scratch.
  void BeginStates(bool) const {}
  void StoreWeights(int row, int column, typename Simd::F lanes) const {
    Simd::Store(s_.value_weights + row * kChunkStride + column, lanes);
  }

  // What the value heads of the chunk share: q, k, k transposed (zero up to the padding); kk = K K^T, qk = Q K^T, on and
  // below the diagonal.
  template <typename Side>
  void Prepare(const DeltaNetTask& task, int count, Side&) const {
    const int dim = task.key_dim;
    const float scale = 1.0f / sqrtf(static_cast<float>(dim));
    for (int i = 0; i < count; ++i) {
      L2Normalize<Simd>(s_.q + i * s_.key_stride, task.q + i * task.conv_stride, dim, scale);
      L2Normalize<Simd>(s_.k + i * s_.key_stride, task.k + i * task.conv_stride, dim, 1.0f);
    }
    for (int i = 0; i < count; i += 16) {
      for (int p = 0; p < RoundUp(dim, 16); p += 16) {
        typename Simd::F lanes[16];
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
          lanes[j] = i + j < count ? Simd::Load(s_.k + (i + j) * s_.key_stride + p) : Simd::Zero();
        }
        Simd::Transpose(lanes);
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) Simd::Store(s_.k_transposed + (p + j) * kChunkStride + i, lanes[j]);
      }
    }
    SmallGemm product = {.a = s_.k, .a_stride = s_.key_stride, .b = s_.k_transposed, .b_stride = kChunkStride,
                         .c = s_.kk, .c_stride = kChunkStride, .m = count, .n = RoundUp(count, 16),
                         .k = task.key_dim, .c_is_lower = true};
    Multiply<Simd>(product);
    product.a = s_.q;
    product.c = s_.qk;
    Multiply<Simd>(product);
  }
  // x = K S, out = Q S
  template <typename Side>
  void ReadState(const DeltaNetTask& task, int head, int count, Side&) const {
    SmallGemm read = {.a = s_.k, .a_stride = s_.key_stride, .b = s_.state(head), .b_stride = s_.value_stride, .c = s_.x,
                      .c_stride = s_.value_stride, .m = count, .n = RoundUp(task.value_dim, 16), .k = task.key_dim};
    Multiply<Simd>(read);
    read.a = s_.q;
    read.c = s_.out;
    Multiply<Simd>(read);
  }
  // x <- (I - W)^-1 x, of SolveUnitLower
  template <typename Side>
  void Solve(const DeltaNetTask& task, int count, Side&) const {
    SolveUnitLower<Simd>(s_, 0, count, RoundUp(task.value_dim, 16));
  }
  // out += weights x, of StoreWeights
  template <typename Side>
  void AddValues(const DeltaNetTask& task, int count, Side&) const {
    Multiply<Simd>({.a = s_.value_weights, .a_stride = kChunkStride, .b = s_.x, .b_stride = s_.value_stride, .c = s_.out,
                    .c_stride = s_.value_stride, .m = count, .n = RoundUp(task.value_dim, 16), .k = count,
                    .c_scale = 1, .a_is_lower = true});
  }
  // S <- decay S + K^T diag(factors) x. May change x.
  template <typename Side>
  void UpdateState(const DeltaNetTask& task, int head, const float* factors, float decay, int count, Side&) const {
    for (int i = 0; i < count; ++i) {
      const auto factor = Simd::Set(factors[i]);
      float* x = s_.x + i * s_.value_stride;
      for (int c = 0; c < task.value_dim; c += 16) Simd::Store(x + c, Simd::Mul(factor, Simd::Load(x + c)));
    }
    Multiply<Simd>({.a = s_.k_transposed, .a_stride = kChunkStride, .b = s_.x, .b_stride = s_.value_stride,
                    .c = s_.state(head), .c_stride = s_.value_stride, .m = task.key_dim,
                    .n = RoundUp(task.value_dim, 16), .k = count, .c_scale = decay});
  }

 private:
  const DeltaNetScratch& s_;
};

// The gated norm of a chunk's rows in one head, two at a step.
template <typename Simd, typename T>
class NormRows {
 public:
  NormRows(const DeltaNetTask& task, const DeltaNetScratch& s, int count, int head)
      : task_(task), s_(s), count_(count), head_(head) {}
  void Step() {
    for (int i = 0; i < 2 && row_ < count_; ++i) Row();
  }
  void Finish() {
    while (row_ < count_) Row();
  }

 private:
  void Row() {
    GatedNorm<Simd, T>(task_, row_, head_, s_.out + row_ * s_.value_stride);
    ++row_;
  }
  const DeltaNetTask& task_;
  const DeltaNetScratch& s_;
  const int count_, head_;
  int64_t row_ = 0;
};

// The first `count` rows of the task in one value head. A state of zeros is not read.
template <typename Simd, typename T, typename Products, typename Side>
void ChunkOfHead(const DeltaNetTask& task, const DeltaNetScratch& s, const Products& products, int count, int head,
                 bool state_is_zero, Side& side) {
  const int dim = task.value_dim;
  alignas(64) float log_decay[kChunk];
  GatesOfHead<Simd>(task, 0, count, head, log_decay, s.beta);
  double decay = 0;
  for (int i = 0; i < count; ++i) {
    decay += log_decay[i];
    s.decay[i] = static_cast<float>(decay);
    s.decay_low[i] = static_cast<float>(decay - s.decay[i]);
  }
  NormRowsAhead<Side> ahead(side, task, head, count);
  if (!state_is_zero) products.ReadState(task, head, count, ahead);
  alignas(64) float decays[kChunk] = {};  // e^G
  for (int i = 0; i < count; i += 16) Simd::Store(decays + i, Simd::Exp(Simd::Load(s.decay + i)));
  for (int i = 0; i < count; ++i) {
    const float* v = task.v + i * task.conv_stride + head * dim;
    const auto beta = Simd::Set(s.beta[i]), decayed = Simd::Set(decays[i]);
    const auto read = [&](const float* at) __attribute__((always_inline)) {
      return state_is_zero ? Simd::Zero() : Simd::Mul(decayed, Simd::Load(at));
    };
    float *x = s.x + i * s.value_stride, *out = s.out + i * s.value_stride;
    for (int c = 0; c < dim; c += 16) {
      const auto error = Simd::Sub(Simd::LoadN(v + c, Least(16, dim - c)), read(x + c));
      Simd::Store(x + c, Simd::Mul(beta, error));
      Simd::Store(out + c, read(out + c));
    }
  }
  DecayedWeights<Simd>(s, products, count);
  ahead.Finish();
  products.Solve(task, count, side);
  products.AddValues(task, count, side);
  alignas(64) float factors[kChunk] = {};  // e^(G_last - G)
  const auto last = Simd::Set(s.decay[count - 1]), last_low = Simd::Set(s.decay_low[count - 1]);
  for (int i = 0; i < count; i += 16) {
    const auto rest = Simd::Add(Simd::Sub(last, Simd::Load(s.decay + i)), Simd::Sub(last_low, Simd::Load(s.decay_low + i)));
    Simd::Store(factors + i, Simd::Exp(rest));
  }
  NormRows<Simd, T> norm(task, s, count, head);
  const float decay_of_chunk = Simd::MaxOf(Simd::Exp(last));
  products.UpdateState(task, head, factors, decay_of_chunk, count, norm);
  norm.Finish();
}

// The states of the group, from the task into scratch and back.
template <typename Simd>
void LoadStates(const DeltaNetTask& task, const DeltaNetScratch& s) {
  for (int64_t row = 0; row < int64_t{task.group} * task.key_dim; ++row) {
    float* to = s.states + row / task.key_dim * s.state_size() + row % task.key_dim * s.value_stride;
    for (int c = 0; c < task.value_dim; c += 16) {
      const int n = Least(16, task.value_dim - c);
      Simd::Store(to + c, task.fresh ? Simd::Zero() : Simd::LoadN(task.state + row * task.value_dim + c, n));
    }
  }
}

template <typename Simd>
void StoreStates(const DeltaNetTask& task, const DeltaNetScratch& s) {
  for (int64_t row = 0; row < int64_t{task.group} * task.key_dim; ++row) {
    const float* from = s.states + row / task.key_dim * s.state_size() + row % task.key_dim * s.value_stride;
    for (int c = 0; c < task.value_dim; c += 16) {
      Simd::StoreN(task.state + row * task.value_dim + c, Simd::Load(from + c), Least(16, task.value_dim - c));
    }
  }
}

// Rows [first, first + count) of a task; q, k and v stay where they are.
inline DeltaNetTask RowsOf(DeltaNetTask task, int64_t first, int64_t count) {
  const int64_t prompt = task.num_prompt_rows - first;
  task.out = static_cast<char*>(task.out) + first * task.out_stride * task.out_bytes;
  task.z += first * task.gates_stride;
  task.b += first * task.gates_stride;
  task.a += first * task.gates_stride;
  task.num_prompt_rows = prompt < 0 ? 0 : prompt < count ? prompt : count;
  task.num_rows = count;
  return task;
}

// All rows of a task, chunk after chunk. While it lives, the states of a task that begins with prompt rows are in scratch.
template <typename Simd, typename T, typename Products>
class DeltaNetRun {
 public:
  explicit DeltaNetRun(const DeltaNetTask& task)
      : scratch_(task.scratch, task.key_dim, task.value_dim, task.group), products_(task, scratch_),
        prompt_left_(task.num_prompt_rows), states_are_zero_(task.fresh) {
    if (prompt_left_ > 0) {
      LoadStates<Simd>(task, scratch_);
      products_.BeginStates(states_are_zero_);
    } else if (task.fresh) {
      const int64_t size = static_cast<int64_t>(task.group) * task.key_dim * task.value_dim;
      for (int64_t i = 0; i < size; ++i) task.state[i] = 0;
    }
  }
  DeltaNetRun(const DeltaNetRun&) = delete;
  DeltaNetRun& operator=(const DeltaNetRun&) = delete;

  // The next kChunk rows of the task, or what is left of it.
  template <typename Side>
  void Chunk(const DeltaNetTask& rows, Side& side) {
    if constexpr (Products::kTakesSteps) {
      PromptChunk(rows, side);
    } else {
      NoSideWork none;
      PromptChunk(rows, none);
    }
    const int64_t prompt = rows.num_prompt_rows;
    for (int64_t row = prompt; row < rows.num_rows; ++row) RecurrentStep<Simd, T>(rows, scratch_, row);
  }

 private:
  template <typename Side>
  __attribute__((noinline)) void PromptChunk(const DeltaNetTask& rows, Side& side) {
    const int prompt = static_cast<int>(rows.num_prompt_rows);
    if (prompt == 0) return;
    products_.Prepare(rows, prompt, side);
    for (int head = 0; head < rows.group; ++head) {
      ChunkOfHead<Simd, T>(rows, scratch_, products_, prompt, head, states_are_zero_, side);
    }
    states_are_zero_ = false;
    prompt_left_ -= prompt;
    if (prompt_left_ == 0) StoreStates<Simd>(rows, scratch_);
  }

  const DeltaNetScratch scratch_;
  const Products products_;
  int64_t prompt_left_;
  bool states_are_zero_;  // those in scratch
};

template <typename Simd, typename T, typename Products = F32ChunkProducts<Simd>>
void DeltaNetKernel(const DeltaNetTask& task) {
  const FlushSubnormals flush;
  DeltaNetRun<Simd, T, Products> run(task);
  NoSideWork none;
  for (int64_t first = 0; first < task.num_rows; first += kChunk) {
    DeltaNetTask rows = RowsOf(task, first, task.num_rows - first < kChunk ? task.num_rows - first : kChunk);
    rows.q += first * task.conv_stride;
    rows.k += first * task.conv_stride;
    rows.v += first * task.conv_stride;
    run.Chunk(rows, none);
  }
}

}  // namespace
}  // namespace plumbline
