#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/bf16_attention_amx.h"
#include "kernels/cpu/conv_delta_net_kernel.h"
#include "kernels/cpu/conv_kernel.h"
#include "kernels/cpu/delta_net_amx.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/lanes16_avx512.h"

namespace plumbline {

const SequenceKernels kAmxSequenceKernels = {
    .widen_row = {WidenRow<Avx512Lanes, float>, WidenRow<Avx512Lanes, Bf16>, WidenRow<Avx512Lanes, F16>},
    .add_partials = AddPartials<Avx512Lanes>,
    .rms_norm_row = {RmsNormRow<Avx512Lanes, float>, RmsNormRow<Avx512Lanes, Bf16>, RmsNormRow<Avx512Lanes, F16>},
    .norm_rope = {NormRopeHead<Avx512Lanes, float>, NormRopeHead<Avx512Lanes, Bf16>, NormRopeHead<Avx512Lanes, F16>},
    .attention_scratch_bytes = AttentionScratchBytes,
    .attention = {AttentionKernel<Avx512Lanes, float, F32Products<Avx512Lanes, float>>,
                  AttentionKernel<Avx512Lanes, Bf16, AmxProducts>,
                  AttentionKernel<Avx512Lanes, F16, F32Products<Avx512Lanes, F16>>},
    .causal_conv = {ConvKernel<Avx512Lanes, float>, ConvKernel<Avx512Lanes, Bf16>, ConvKernel<Avx512Lanes, F16>},
    .delta_net_scratch = AmxChunkProducts::ScratchFloats,
    .delta_net = {DeltaNetKernel<Avx512Lanes, float>, DeltaNetKernel<Avx512Lanes, Bf16, AmxChunkProducts>,
                  DeltaNetKernel<Avx512Lanes, F16, AmxChunkProducts>},
    .conv_delta_net_scratch = ConvDeltaNetScratchFloats<AmxChunkProducts>,
    .conv_delta_net = {ConvDeltaNetKernel<Avx512Lanes, float>, ConvDeltaNetKernel<Avx512Lanes, Bf16, AmxChunkProducts>,
                       ConvDeltaNetKernel<Avx512Lanes, F16, AmxChunkProducts>},
    .max_of_row = MaxOfRow<Avx512Lanes>,
};

}  // namespace plumbline
