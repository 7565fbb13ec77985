#include "cli/device_kinds.h"

#include "absl/strings/match.h"
#include "kernels/machine_rates.h"
#include "worker/host_facts.h"

namespace plumbline {
namespace {

constexpr int64_t UsableOf(double gigabytes) { return static_cast<int64_t>(gigabytes * 0.96e9); }

struct Datasheet {
  double terabytes_per_second, teraflops, link_gigabytes_per_second, exchange_microseconds;
};
DeviceSpeed SpeedOf(const Datasheet& sheet) {
  return {.bytes_per_second = 0.8 * 1e12 * sheet.terabytes_per_second,
          .linear_flops_per_second = 0.6 * 1e12 * sheet.teraflops,
          .attention_flops_per_second = 0.35 * 1e12 * sheet.teraflops,
          .delta_net_flops_per_second = 0.1 * 1e12 * sheet.teraflops,
          .link_bytes_per_second = 0.7 * 1e9 * sheet.link_gigabytes_per_second,
          .exchange_seconds = 1e-6 * sheet.exchange_microseconds};
}

// Of the measured read bandwidth and of the peak of the arithmetic's own instructions.
struct Shares {
  double bandwidth, linear, attention, delta_net;
};
Shares SharesOf(const std::string& arithmetic) {
  if (absl::StrContains(arithmetic, "amx")) return {0.95, 0.28, 0.09, 0.038};
  if (absl::StrContains(arithmetic, "avx512")) return {0.88, 0.77, 0.58, 0.66};
  return {0.85, 0.77, 0.58, 0.55};
}

}  // namespace

const std::vector<DeviceKind>& KnownGpus() {
  static const std::vector<DeviceKind>* const kGpus = new std::vector<DeviceKind>{
      {"h200", UsableOf(141), SpeedOf({4.8, 989, 450, 12})},
      {"h100", UsableOf(80), SpeedOf({3.35, 989, 450, 12})},
      {"a100-80", UsableOf(80), SpeedOf({2.04, 312, 300, 15})},
      {"a100-40", UsableOf(40), SpeedOf({1.56, 312, 300, 15})},
      {"l40s", UsableOf(48), SpeedOf({0.864, 362, 32, 25})},
      {"rtx4090", UsableOf(24), SpeedOf({1.008, 165, 32, 25})},
  };
  return *kGpus;
}

DeviceKind ThisCpu(int num_ranks, const std::string& arithmetic, int num_threads, DType dtype) {
  const MachineRates rates = MeasureCpuRates({.arithmetic = arithmetic, .num_threads = num_threads}, dtype);
  const Shares shares = SharesOf(arithmetic);
  const double part = 1.0 / num_ranks;
  return {.name = "cpu",
          .bytes = AvailableMemoryBytes() / num_ranks,
          .speed = {.bytes_per_second = part * shares.bandwidth * rates.bytes_per_second,
                    .linear_flops_per_second = part * shares.linear * rates.flops_per_second,
                    .attention_flops_per_second = part * shares.attention * rates.flops_per_second,
                    .delta_net_flops_per_second = part * shares.delta_net * rates.flops_per_second,
                    .generated_row_seconds = 20e-6,
                    .link_bytes_per_second = 4e9,
                    .exchange_seconds = 20e-6}};
}

}  // namespace plumbline
