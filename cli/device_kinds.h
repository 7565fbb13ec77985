// DeviceKind: what `plan` knows of the devices that people have.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "parallel/speed.h"

namespace plumbline {

struct DeviceKind {
  std::string name;
  int64_t bytes = 0;  // that a process can have
  DeviceSpeed speed;  // of one device
};

// GPUs by their datasheets (dense bf16, one direction of the link) times the shares that good kernels reach there.
const std::vector<DeviceKind>& KnownGpus();

// This machine dealt out to so many ranks: rates measured now (half a second), times the shares that our ops reach with
// that arithmetic (docs/measurements).
DeviceKind ThisCpu(int num_ranks, const std::string& arithmetic, int num_threads, DType dtype);

}  // namespace plumbline
