// Linear and GatedLinear: generated rows and prompt rows each through their kernel.
#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/linear_work.cuh"
#include "kernels/cuda/padded_rows.cuh"

namespace plumbline {
namespace cuda {

void RunLinear(const LinearWork& work, Role role, cudaStream_t stream) {
  if (work.dtype == DType::kF32) return F32Linear(work, stream);
  return role == Role::kGenerated ? FewRowLinear(work, stream) : ManyRowLinear(work, stream);
}

}  // namespace cuda

namespace {

using namespace cuda;

// work: of all rows.
void RunByRole(const LinearWork& work, int64_t num_rows, int64_t num_generated, cudaStream_t stream) {
  const int64_t size = static_cast<int64_t>(SizeOf(work.dtype)), cut = std::clamp<int64_t>(num_generated, 0, num_rows);
  for (const Role role : {Role::kGenerated, Role::kPrompt}) {
    const int64_t first = role == Role::kGenerated ? 0 : cut, last = role == Role::kGenerated ? cut : num_rows;
    LinearWork part = work;
    part.rows.num_places = last - first;
    part.x = static_cast<const char*>(work.x) + first * work.x_stride * size;
    if (work.out != nullptr) part.out += first * (work.n - work.num_rounded);
    if (work.rounded != nullptr) part.rounded = static_cast<char*>(work.rounded) + first * work.rounded_stride * size;
    RunLinear(part, role, stream);
  }
}

}  // namespace

void CudaOps::DoLinear(const LinearArgs& args) {
  const ConstTensor x = PaddedRows(args.x, args.shape, workspace_.Take(PaddedBytes(args.x, args.shape)), stream());
  LinearWork work = WorkOf(args.shape, LinearResult::kSum);
  work.weight = args.weight.raw();
  work.x = x.raw();
  work.x_stride = x.row_stride();
  work.out = args.out.as<float>();
  work.bias = args.bias.empty() ? nullptr : args.bias.as<float>();
  if (!args.rounded.empty()) {
    work.rounded = args.rounded.raw();
    work.num_rounded = args.num_rounded();
    work.rounded_stride = args.rounded.row_stride();
  }
  RunByRole(work, args.x.dim(0), args.num_generated, stream());
}

void CudaOps::DoGatedLinear(const GatedLinearArgs& args) {
  const ConstTensor x = PaddedRows(args.x, args.shape, workspace_.Take(PaddedBytes(args.x, args.shape)), stream());
  LinearWork work = WorkOf(args.shape, LinearResult::kGated);
  work.weight = args.weight.raw();
  work.x = x.raw();
  work.x_stride = x.row_stride();
  work.rounded = args.out.raw();
  work.num_rounded = work.n;
  work.rounded_stride = args.out.row_stride();
  RunByRole(work, args.x.dim(0), args.num_generated, stream());
}

}  // namespace plumbline
