// In place of kernels/cuda where it is not built.
#include "kernels/backend.h"

namespace plumbline {

std::string WhyNoCuda(int) { return "this build has no CUDA"; }

Backend MakeCudaBackend(int) {
  PL_CHECK_MSG(false, "this build has no CUDA");
  return {};
}

}  // namespace plumbline
