// Rows of activations as the kernels of linears read them: leaves padded with zeros to whole steps, aligned to 16
// bytes. Most models' activations lie so already; the others are copied.
#pragma once

#include "kernels/cuda/packed_weight.cuh"
#include "kernels/tensor.h"

namespace plumbline::cuda {

bool NeedsPadding(const ConstTensor& x, const LinearShape& shape);  // shape: of the weight that x is multiplied with
// What to set aside for the copy; 0 when none is needed.
size_t PaddedBytes(const ConstTensor& x, const LinearShape& shape);
// x itself, or its copy in `memory`.
ConstTensor PaddedRows(const ConstTensor& x, const LinearShape& shape, void* memory, cudaStream_t stream);

}  // namespace plumbline::cuda
