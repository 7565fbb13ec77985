// MoeMlp.
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

void CudaOps::DoMoeMlp(const MoeMlpArgs&) { PL_CHECK_MSG(false, "not written yet"); }

}  // namespace plumbline
