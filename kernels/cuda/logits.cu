// ConcatColumns, Penalties, Logprobs.
#include "kernels/cuda/cuda_ops.h"

namespace plumbline {

void CudaOps::DoConcatColumns(const ConcatColumnsArgs&) { PL_CHECK_MSG(false, "not written yet"); }
void CudaOps::DoPenalties(const PenaltiesArgs&) { PL_CHECK_MSG(false, "not written yet"); }
void CudaOps::DoLogprobs(const LogprobsArgs&) { PL_CHECK_MSG(false, "not written yet"); }

}  // namespace plumbline
