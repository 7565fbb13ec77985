// Backend = Device + Ops; the only way to name one.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "kernels/ops.h"

namespace plumbline {

struct Backend {
  std::unique_ptr<Device> device;
  std::unique_ptr<Ops> ops;
};

// The specification: plain loops, slow on purpose. arithmetic() is "reference-1".
Backend MakeReferenceBackend();

// Names of the CPU arithmetics this machine can run, fastest first: of "cpu-amx-1", "cpu-avx512bf16-1", "cpu-avx2-1",
// "cpu-scalar-1". Read from the processor at run time.
std::vector<std::string> CpuArithmetics();

// num_threads >= 1 threads work on each op, the caller's included.
// REQUIRES: arithmetic is one of CpuArithmetics().
struct CpuBackendOptions {
  std::string_view arithmetic;
  int num_threads = 1;
};
Backend MakeCpuBackend(const CpuBackendOptions& options);

// Why device number `device` of this host cannot be used, in one line; empty when it can. A build without CUDA says so.
std::string WhyNoCuda(int device);
// REQUIRES: WhyNoCuda(device) is empty.
Backend MakeCudaBackend(int device);

}  // namespace plumbline
