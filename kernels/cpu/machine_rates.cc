#include "kernels/machine_rates.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/thread_pool.h"

namespace plumbline {
namespace {

constexpr int64_t kReadBytes = int64_t{512} << 20;  // more than caches hold
constexpr int64_t kRounds = 1 << 18;
constexpr int kRepetitions = 5;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Best of some repetitions: other programs only ever take time away.
template <typename Fn>
double BestSeconds(const Fn& fn) {
  double best = 0;
  for (int i = 0; i < kRepetitions; ++i) {
    const double start = Seconds();
    fn();
    const double seconds = Seconds() - start;
    best = i == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

}  // namespace

MachineRates MeasureCpuRates(const CpuBackendOptions& options, DType dtype) {
  const LinearTable& table = LinearTableOf(ArithmeticOf(options.arithmetic));
  const LinearKernel& kernel = KernelOf(table, dtype);
  ThreadPool pool(options.num_threads);
  const int64_t threads = options.num_threads, share = kReadBytes / threads / 64 * 64;
  const std::unique_ptr<Device> device = MakeHostDevice();
  const Buffer buffer = device->Allocate(kReadBytes);
  std::byte* memory = static_cast<std::byte*>(buffer.View(DType::kU8, {kReadBytes}).raw());
  pool.ParallelFor(threads, [&](int64_t i, int) { std::fill_n(memory + i * share, share, std::byte{1}); });
  std::vector<float> sinks(threads);
  const double reading = BestSeconds([&] {
    pool.ParallelFor(threads, [&](int64_t i, int) { sinks[i] = table.read(memory + i * share, share); });
  });
  std::vector<int64_t> flops(threads);
  const double multiplying = BestSeconds([&] {
    pool.ParallelFor(threads, [&](int64_t i, int) { flops[i] = kernel.saturate(kRounds); });
  });
  double total = 0;
  for (int64_t f : flops) total += static_cast<double>(f);
  return {.bytes_per_second = static_cast<double>(share * threads) / reading,
          .flops_per_second = total / multiplying};
}

}  // namespace plumbline
