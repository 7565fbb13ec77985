// ProfiledOps: a backend's ops with a stopwatch. For backends that finish an op before they return.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "kernels/op_cost.h"

namespace plumbline {

// What the calls of one op on one shape took.
struct OpTotals {
  int64_t num_calls = 0;
  double seconds = 0;
  OpCost cost;
};

// By op and shape: "Linear 512 x 1024 x 2048". Not thread-safe; read it while no op runs.
using OpProfile = std::map<std::string, OpTotals>;

// profile outlives the ops.
std::unique_ptr<Ops> MakeProfiledOps(std::unique_ptr<Ops> inner, OpProfile& profile);

}  // namespace plumbline
