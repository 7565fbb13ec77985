// Linear and GatedLinear.
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

void CudaOps::DoLinear(const LinearArgs&) { PL_CHECK_MSG(false, "not written yet"); }
void CudaOps::DoGatedLinear(const GatedLinearArgs&) { PL_CHECK_MSG(false, "not written yet"); }

}  // namespace plumbline
