# Compiled by nvcc for GPUs (kernels/cuda/CMakeLists.txt) and as host C++ (tests/cuda_host/CMakeLists.txt).
set(PLUMBLINE_CUDA_SOURCES
  attention.cu
  attention_general.cu
  attention_split.cu
  attention_walk.cu
  conv.cu
  cuda_backend.cu
  cuda_device.cu
  delta_net.cu
  delta_net_chunks.cu
  delta_net_prepare.cu
  delta_net_recurrent.cu
  f32_linear.cu
  few_row_linear.cu
  linear.cu
  logits.cu
  many_row_linear.cu
  moe.cu
  moe_route.cu
  pack.cu
  padded_rows.cu
  residual.cu
  rope.cu
  sample.cu
  token_order.cu
)
list(TRANSFORM PLUMBLINE_CUDA_SOURCES PREPEND ${CMAKE_SOURCE_DIR}/kernels/cuda/)
