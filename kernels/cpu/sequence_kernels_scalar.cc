#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/conv_delta_net_kernel.h"
#include "kernels/cpu/conv_kernel.h"
#include "kernels/cpu/delta_net_kernel.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/lanes16_scalar.h"

namespace plumbline {

const SequenceKernels kScalarSequenceKernels = {
    .widen_row = {WidenRow<ScalarLanes, float>, WidenRow<ScalarLanes, Bf16>, WidenRow<ScalarLanes, F16>},
    .add_partials = AddPartials<ScalarLanes>,
    .rms_norm_row = {RmsNormRow<ScalarLanes, float>, RmsNormRow<ScalarLanes, Bf16>, RmsNormRow<ScalarLanes, F16>},
    .norm_rope = {NormRopeHead<ScalarLanes, float>, NormRopeHead<ScalarLanes, Bf16>, NormRopeHead<ScalarLanes, F16>},
    .attention_scratch_bytes = AttentionScratchBytes,
    .attention = {AttentionKernel<ScalarLanes, float, F32Products<ScalarLanes, float>>,
                  AttentionKernel<ScalarLanes, Bf16, F32Products<ScalarLanes, Bf16>>,
                  AttentionKernel<ScalarLanes, F16, F32Products<ScalarLanes, F16>>},
    .causal_conv = {ConvKernel<ScalarLanes, float>, ConvKernel<ScalarLanes, Bf16>, ConvKernel<ScalarLanes, F16>},
    .delta_net_scratch = DeltaNetScratchFloats,
    .delta_net = {DeltaNetKernel<ScalarLanes, float>, DeltaNetKernel<ScalarLanes, Bf16>,
                  DeltaNetKernel<ScalarLanes, F16>},
    .conv_delta_net_scratch = ConvDeltaNetScratchFloats<F32ChunkProducts<ScalarLanes>>,
    .conv_delta_net = {ConvDeltaNetKernel<ScalarLanes, float>, ConvDeltaNetKernel<ScalarLanes, Bf16>,
                       ConvDeltaNetKernel<ScalarLanes, F16>},
    .max_of_row = MaxOfRow<ScalarLanes>,
};

}  // namespace plumbline
