// CausalConv and GatedDeltaNet for all rows of one sequence in one key head with its value heads. The channels of these
// heads pass from one to the other in scratch memory, kChunk rows at a time; the next chunk is convolved between the tile
// products of this one.
#pragma once

#include "kernels/cpu/conv_kernel.h"
#include "kernels/cpu/delta_net_kernel.h"

namespace plumbline {
namespace {

// Columns of 16 channels: q's, then k's, then v's, each part padded.
struct HeadColumns {
  HeadColumns(int key_dim, int value_dim, int group)
      : k(RoundUp(key_dim, 16) / 16), v(2 * k), count(v + RoundUp(group * value_dim, 16) / 16) {}
  int k, v, count;
  int64_t stride() const { return int64_t{count} * 16; }  // floats from row to row
};

// In the task's scratch, before DeltaNetScratch.
struct ConvolvedScratch {
  ConvolvedScratch(float* memory, const HeadColumns& columns, int width) : convolution(memory) {
    int64_t used = ConvolutionFloats(columns.count, width);
    for (float*& chunk : chunks) {
      chunk = memory + used;
      used += kChunk * columns.stride();
    }
    num_floats = used;
  }
  float* convolution;
  float* chunks[2];  // [kChunk, columns.stride()] each
  int64_t num_floats;
};

template <typename Products>
int64_t ConvDeltaNetScratchFloats(int key_dim, int value_dim, int group, int width) {
  return ConvolvedScratch(nullptr, HeadColumns(key_dim, value_dim, group), width).num_floats +
         Products::ScratchFloats(key_dim, value_dim, group);
}

// Convolves a chunk, a little at each step: beside the products of a chunk there is time for one such chunk.
template <typename Convolution>
class ChunkAhead {
 public:
  ChunkAhead(Convolution& convolution, int64_t num_rows, int64_t stride)
      : convolution_(convolution), num_rows_(num_rows), stride_(stride) {}

  // Rows [first, first + kChunk) as far as the task has them.
  void Start(int64_t first, float* chunk) {
    row_ = first;
    end_ = first + kChunk < num_rows_ ? first + kChunk : num_rows_;
    out_ = chunk;
    column_ = 0;
  }
  void Step() {
    for (int i = 0; i < kPiecesPerStep && row_ < end_; ++i) Piece();
  }
  void Finish() {
    while (row_ < end_) Piece();
  }

 private:
  static constexpr int kPiecesPerStep = 2;

  void Piece() {
    const int count = static_cast<int>(end_ - row_ < kConvRows ? end_ - row_ : kConvRows);
    const int64_t rest = num_rows_ - row_ - count;
    const int num_ahead = static_cast<int>(rest < kConvRows ? rest : kConvRows);
    convolution_.Rows(column_, row_, count, num_ahead, out_ + column_ * 16, stride_);
    if (++column_ < convolution_.num_columns()) return;
    column_ = 0;
    row_ += count;
    out_ += count * stride_;
  }

  Convolution& convolution_;
  const int64_t num_rows_, stride_;
  int64_t row_ = 0, end_ = 0;
  float* out_ = nullptr;
  int column_ = 0;
};

template <typename Simd, typename T, typename Products = F32ChunkProducts<Simd>>
void ConvDeltaNetKernel(const ConvDeltaNetTask& task) {
  const FlushSubnormals flush;
  DeltaNetTask delta = task.delta;
  const HeadColumns columns(delta.key_dim, delta.value_dim, delta.group);
  const ConvolvedScratch convolved(delta.scratch, columns, task.q.width);
  delta.scratch += convolved.num_floats;
  delta.conv_stride = columns.stride();
  Convolution<Simd, T> convolution(convolved.convolution, columns.count, task.q.width);
  for (const ConvTask* part : {&task.q, &task.k, &task.v}) convolution.Add(*part);
  ChunkAhead<Convolution<Simd, T>> ahead(convolution, delta.num_rows, columns.stride());
  DeltaNetRun<Simd, T, Products> run(delta);
  ahead.Start(0, convolved.chunks[0]);
  for (int64_t first = 0; first < delta.num_rows; first += kChunk) {
    const int64_t index = first / kChunk;
    const float* chunk = convolved.chunks[index % 2];
    ahead.Finish();
    ahead.Start(first + kChunk, convolved.chunks[(index + 1) % 2]);
    DeltaNetTask rows = RowsOf(delta, first, delta.num_rows - first < kChunk ? delta.num_rows - first : kChunk);
    rows.q = chunk;
    rows.k = chunk + columns.k * 16;
    rows.v = chunk + columns.v * 16;
    run.Chunk(rows, ahead);
  }
  convolution.StoreStates();
}

}  // namespace
}  // namespace plumbline
