// The rows of a step in runs: at most kRunRows rows of one sequence, from a multiple of kRunRows of its rows on. Run i of
// sequence s has number row_begin[s] / kRunRows + s + i, which no other run has: so a grid follows from T and S alone. Some
// numbers are unused.
#pragma once

#include <cstdint>

#include "kernels/cuda/primitives.cuh"

namespace plumbline::cuda {

struct RowRun {
  int sequence;
  int first;  // of the sequence's rows; may lie past them
};

inline int64_t NumRuns(int64_t num_rows, int64_t num_sequences, int run_rows) { return num_rows / run_rows + num_sequences; }

template <int kRunRows>
PLUMBLINE_DEVICE int FirstRunOf(const int32_t* row_begin, int sequence) {
  return row_begin[sequence] / kRunRows + sequence;
}

template <int kRunRows>
PLUMBLINE_DEVICE RowRun FindRun(const int32_t* row_begin, int num_sequences, int run) {
  int low = 0, high = num_sequences;  // the run's sequence is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (FirstRunOf<kRunRows>(row_begin, middle) <= run) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return {low, (run - FirstRunOf<kRunRows>(row_begin, low)) * kRunRows};
}

}  // namespace plumbline::cuda
