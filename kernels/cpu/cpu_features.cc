#include "kernels/cpu/cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace plumbline {
namespace {

struct Features {
  bool avx2 = false;         // AVX2, FMA, F16C, and YMM state enabled by the OS
  bool avx512_bf16 = false;  // AVX-512 F, BW, DQ, VL, BF16, and ZMM state enabled
  bool amx_bf16 = false;     // AMX tile and bf16, and tile state granted
};

uint64_t EnabledState() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool RequestTileState() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Features Detect() {
  Features features;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
  const bool osxsave = ecx >> 27 & 1, fma = ecx >> 12 & 1, f16c = ecx >> 29 & 1;
  if (!osxsave || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
  const uint64_t state = EnabledState();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6,
             tile = (state & 0x60000) == 0x60000;
  features.avx2 = ymm && fma && f16c && (ebx >> 5 & 1);
  const bool avx512 =
      zmm && (ebx >> 16 & 1) && (ebx >> 17 & 1) && (ebx >> 30 & 1) && (ebx >> 31 & 1);
  const bool amx = tile && (edx >> 22 & 1) && (edx >> 24 & 1);
  __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx);
  features.avx512_bf16 = features.avx2 && avx512 && (eax >> 5 & 1);
  features.amx_bf16 = features.avx512_bf16 && amx && RequestTileState();
  return features;
}

}  // namespace

std::string_view NameOf(CpuArithmetic arithmetic) {
  switch (arithmetic) {
    case CpuArithmetic::kScalarV1:
      return "cpu-scalar-1";
    case CpuArithmetic::kAvx2V1:
      return "cpu-avx2-1";
    case CpuArithmetic::kAvx512Bf16V1:
      return "cpu-avx512bf16-1";
    case CpuArithmetic::kAmxV1:
      return "cpu-amx-1";
  }
  return "?";
}

CpuArithmetic ArithmeticOf(std::string_view name) {
  for (CpuArithmetic arithmetic : {CpuArithmetic::kAmxV1, CpuArithmetic::kAvx512Bf16V1, CpuArithmetic::kAvx2V1}) {
    if (name == NameOf(arithmetic)) return arithmetic;
  }
  return CpuArithmetic::kScalarV1;
}

SimdLevel SimdLevelOf(CpuArithmetic arithmetic) {
  switch (arithmetic) {
    case CpuArithmetic::kScalarV1:
      return SimdLevel::kScalar;
    case CpuArithmetic::kAvx2V1:
      return SimdLevel::kAvx2;
    case CpuArithmetic::kAvx512Bf16V1:
    case CpuArithmetic::kAmxV1:
      return SimdLevel::kAvx512;
  }
  return SimdLevel::kScalar;
}

bool IsAvailable(CpuArithmetic arithmetic) {
  static const Features features = Detect();
  switch (arithmetic) {
    case CpuArithmetic::kScalarV1:
      return true;
    case CpuArithmetic::kAvx2V1:
      return features.avx2;
    case CpuArithmetic::kAvx512Bf16V1:
      return features.avx512_bf16;
    case CpuArithmetic::kAmxV1:
      return features.amx_bf16;
  }
  return false;
}

}  // namespace plumbline
