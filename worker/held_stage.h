// HeldStage: the stage of this rank as the coordinator's Configure describes it. A Configure that
// asks for what is held already keeps it, weights and all; so a cluster that lost a rank is whole
// again as soon as that one rank has loaded. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/model/stage.h"
#include "worker/weight_source.h"

namespace plumbline {
namespace v1 {
class Configure;
}

class HeldStage {
 public:
  struct Progress {
    int64_t bytes_done = 0;
    int64_t bytes_total = 0;  // of the checkpoint, for this rank
  };
  enum class Outcome { kKept, kLoaded };

  // cache_dir: of packed weights; empty: none. What is said about it goes to stderr.
  explicit HeldStage(std::string cache_dir) : cache_dir_(std::move(cache_dir)) {}

  // INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED and the like: what was asked for cannot be
  // held, now or later.
  absl::StatusOr<Outcome> Hold(const v1::Configure& configure,
                               const std::function<void(Progress)>& on_progress);

  Stage* stage() { return stage_.get(); }  // null before the first Hold and after one that failed

 private:
  absl::Status Load(const v1::Configure& configure,
                    const std::function<void(Progress)>& on_progress);

  const std::string cache_dir_;
  std::string held_;  // the Configure that is held, without what differs from epoch to epoch
  std::unique_ptr<WeightSource> source_;  // outlives the stage: its rows may be mapped
  std::unique_ptr<Stage> stage_;
};

}  // namespace plumbline
