// GatedDeltaNet.
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

void CudaOps::DoGatedDeltaNet(const GatedDeltaNetArgs&) { PL_CHECK_MSG(false, "not written yet"); }

}  // namespace plumbline
