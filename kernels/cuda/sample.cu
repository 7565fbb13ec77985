// Sample.
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

void CudaOps::DoSample(const SampleArgs&) { PL_CHECK_MSG(false, "not written yet"); }

}  // namespace plumbline
