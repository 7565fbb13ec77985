// What this processor can compute with, found at run time: the binary itself needs only baseline
// x86-64.
#pragma once

#include <cstdint>
#include <string_view>

namespace plumbline {

// Instruction sets of the vector kernels.
enum class SimdLevel : uint8_t { kScalar, kAvx2, kAvx512 };

// One value per CPU arithmetic name (backend.h). A number is a promise of bits: a kernel change
// that alters the order or the rounding of any sum needs a new name.
enum class CpuArithmetic : uint8_t { kScalarV1, kAvx2V1, kAvx512Bf16V1, kAmxV1 };

std::string_view NameOf(CpuArithmetic arithmetic);  // "cpu-scalar-1", ...
CpuArithmetic ArithmeticOf(std::string_view name);  // REQUIRES: one of the names
SimdLevel SimdLevelOf(CpuArithmetic arithmetic);

// Whether processor and operating system offer it. Asks the kernel for the AMX tile state on first
// need; threads started afterwards inherit the permission.
bool IsAvailable(CpuArithmetic arithmetic);

}  // namespace plumbline
