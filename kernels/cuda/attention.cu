// Attention.
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

void CudaOps::DoAttention(const AttentionArgs&) { PL_CHECK_MSG(false, "not written yet"); }

}  // namespace plumbline
