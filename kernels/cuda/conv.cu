// CausalConv.
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

void CudaOps::DoCausalConv(const CausalConvArgs&) { PL_CHECK_MSG(false, "not written yet"); }

}  // namespace plumbline
