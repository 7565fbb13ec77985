// LocalRunner: the engine's steps on ranks inside this process.
#pragma once

#include <memory>

#include "coordinator/engine/step_runner.h"
#include "worker/local_ranks.h"

namespace plumbline {

// pipeline_stages and limits must be those of the ranks.
std::unique_ptr<StepRunner> MakeLocalRunner(std::unique_ptr<LocalRanks> ranks, Mesh mesh, const CacheLimits& limits);

}  // namespace plumbline
