#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"

namespace plumbline {
namespace {

constexpr CpuArithmetic kFastestFirst[] = {CpuArithmetic::kAmxV1, CpuArithmetic::kAvx512Bf16V1,
                                           CpuArithmetic::kAvx2V1, CpuArithmetic::kScalarV1};

}  // namespace

CpuOps::CpuOps(CpuArithmetic arithmetic, int num_threads)
    : arithmetic_(arithmetic), pool_(num_threads), scratch_(num_threads) {
  PL_CHECK(IsAvailable(arithmetic));
}

std::vector<std::string> CpuArithmetics() {
  std::vector<std::string> names;
  for (CpuArithmetic arithmetic : kFastestFirst) {
    if (IsAvailable(arithmetic)) names.emplace_back(NameOf(arithmetic));
  }
  return names;
}

Backend MakeCpuBackend(const CpuBackendOptions& options) {
  for (CpuArithmetic arithmetic : kFastestFirst) {
    // Asked before the pool starts its threads, which inherit the permission to use AMX.
    if (options.arithmetic != NameOf(arithmetic) || !IsAvailable(arithmetic)) continue;
    return {MakeHostDevice(), std::make_unique<CpuOps>(arithmetic, options.num_threads)};
  }
  PL_CHECK_MSG(false, "arithmetic is not one of CpuArithmetics()");
  return {};
}

}  // namespace plumbline
