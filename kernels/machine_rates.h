// MachineRates: what this machine can do at most, by measurement: what speeds are quoted as a share of.
#pragma once

#include "kernels/backend.h"

namespace plumbline {

struct MachineRates {
  double bytes_per_second = 0;  // read from memory by all threads together
  double flops_per_second = 0;  // multiply-adds on registers, as the arithmetic multiplies weights of the dtype
};

// Takes about half a second and 512 MiB. REQUIRES: as MakeCpuBackend; dtype is f32, bf16 or f16.
MachineRates MeasureCpuRates(const CpuBackendOptions& options, DType dtype);

}  // namespace plumbline
