// RopeTable and QkNormRope.
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

void CudaOps::DoRopeTable(const RopeTableArgs&) { PL_CHECK_MSG(false, "not written yet"); }
void CudaOps::DoQkNormRope(const QkNormRopeArgs&) { PL_CHECK_MSG(false, "not written yet"); }

}  // namespace plumbline
