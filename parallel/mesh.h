// Mesh: the grid of ranks that holds one copy of a model. rank = stage * tp + tp_index.
#pragma once

namespace plumbline {

struct Mesh {
  int tp = 1;  // tensor-parallel size: 1, 2, 4 or 8
  int pp = 1;  // pipeline stages

  int size() const { return tp * pp; }
  int StageOf(int rank) const { return rank / tp; }
  int TpIndexOf(int rank) const { return rank % tp; }
  int RankOf(int stage, int tp_index) const { return stage * tp + tp_index; }
  bool operator==(const Mesh&) const = default;
};

}  // namespace plumbline
