#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/conv_delta_net_kernel.h"
#include "kernels/cpu/conv_kernel.h"
#include "kernels/cpu/delta_net_kernel.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/lanes16_avx2.h"

namespace plumbline {

const SequenceKernels kAvx2SequenceKernels = {
    .widen_row = {WidenRow<Avx2Lanes, float>, WidenRow<Avx2Lanes, Bf16>, WidenRow<Avx2Lanes, F16>},
    .add_partials = AddPartials<Avx2Lanes>,
    .rms_norm_row = {RmsNormRow<Avx2Lanes, float>, RmsNormRow<Avx2Lanes, Bf16>, RmsNormRow<Avx2Lanes, F16>},
    .norm_rope = {NormRopeHead<Avx2Lanes, float>, NormRopeHead<Avx2Lanes, Bf16>, NormRopeHead<Avx2Lanes, F16>},
    .attention_scratch_bytes = AttentionScratchBytes,
    .attention = {AttentionKernel<Avx2Lanes, float, F32Products<Avx2Lanes, float>>,
                  AttentionKernel<Avx2Lanes, Bf16, F32Products<Avx2Lanes, Bf16>>,
                  AttentionKernel<Avx2Lanes, F16, F32Products<Avx2Lanes, F16>>},
    .causal_conv = {ConvKernel<Avx2Lanes, float>, ConvKernel<Avx2Lanes, Bf16>, ConvKernel<Avx2Lanes, F16>},
    .delta_net_scratch = DeltaNetScratchFloats,
    .delta_net = {DeltaNetKernel<Avx2Lanes, float>, DeltaNetKernel<Avx2Lanes, Bf16>,
                  DeltaNetKernel<Avx2Lanes, F16>},
    .conv_delta_net_scratch = ConvDeltaNetScratchFloats<F32ChunkProducts<Avx2Lanes>>,
    .conv_delta_net = {ConvDeltaNetKernel<Avx2Lanes, float>, ConvDeltaNetKernel<Avx2Lanes, Bf16>,
                       ConvDeltaNetKernel<Avx2Lanes, F16>},
    .max_of_row = MaxOfRow<Avx2Lanes>,
};

}  // namespace plumbline
