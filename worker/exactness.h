// The proof of exactness on a model: the f32 logits of every token are hashed over a matrix of cluster shapes, batch sizes,
// prompt chunkings, prefix hits and preemptions, and must equal those of the token's sequence alone on one rank. Used by
// the test suite and by `plumbline doctor --exactness` on a user's own model.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/local_ranks.h"

namespace plumbline {

struct ExactnessOptions {
  LocalRanks::Options ranks;  // mesh, transport and limits are filled in per run
  std::vector<Mesh> meshes;
  std::vector<LocalRanks::Options::Transport> transports;
  std::vector<int> batches;        // sequences side by side, of different lengths
  std::vector<int64_t> chunks;     // prompt tokens per step at most, multiples of 64; 0 = whole prompts
  std::vector<int64_t> prefix_hits = {0};  // leading prompt tokens taken over from a cache, multiples of 64
  int64_t prompt_tokens = 200;     // of the longest sequence
  int64_t generated_tokens = 8;    // behind the prompt, with role generated
  uint64_t seed = 1;               // of the token ids
};

struct ExactnessRun {
  Mesh mesh;
  LocalRanks::Options::Transport transport;
  int batch = 1;
  int64_t chunk = 0;
  int64_t prefix_hit = 0;        // of sequences whose prompt is longer; of others as much as may be
  bool preempted = false;
  int64_t tokens = 0;            // whose logits were compared; recomputed ones count again
  int64_t differing_tokens = 0;
  std::string first_difference;  // "sequence 0, position 64" or empty
};

// Every run of the matrix, in order. Errors are the ranks' own; differing bits are not an error.
absl::StatusOr<std::vector<ExactnessRun>> RunExactnessMatrix(
    const ExactnessOptions& options, const std::function<void(const ExactnessRun&)>& on_run);

}  // namespace plumbline
