// Prints an OpProfile: what each op moved and computed, how long it took, and how near that is to the machine's limit.
#pragma once

#include <string>

#include "kernels/machine_rates.h"
#include "kernels/profiled_ops.h"

namespace plumbline {

// One line per op and shape, the longest first. The limit of an op is the longer of its bytes at the machine's bandwidth
// and its FLOPs at its peak; per_run: calls are divided by so many runs.
std::string OpTable(const OpProfile& profile, const MachineRates& rates, int64_t num_runs);

}  // namespace plumbline
