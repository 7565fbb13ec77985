// Rates of the CPU linears: prefill in FLOP/s, decode in bytes of weight per second.
//   build/.../tests/ops_bench --benchmark_filter=cpu-amx-1
#include <benchmark/benchmark.h>

#include <string>
#include <thread>
#include <vector>

#include "kernels/backend.h"

namespace plumbline {
namespace {

struct BenchShape {
  const char* name;
  LinearShape shape;
};
// Projections of a 27B model, hidden 5120.
const BenchShape kShapes[] = {
    {"gate_up", {.n = 2 * 17408, .k = 5120, .gated = true}},
    {"down", {.n = 5120, .k = 17408, .num_leaves = 8}},
};

void RunLinear(benchmark::State& state, const std::string& arithmetic, int num_threads,
               LinearShape shape) {
  const int64_t rows = state.range(0);
  Backend backend = MakeCpuBackend({.arithmetic = arithmetic, .num_threads = num_threads});
  const int64_t bytes = backend.ops->PackedBytes(shape);
  const Buffer weight = backend.device->Allocate(bytes);
  const Buffer x = backend.device->Allocate(rows * shape.k * 4);
  const Buffer out = backend.device->Allocate(rows * shape.n * 4);
  // Touched, or every page would be the kernel's one page of zeros.
  backend.device->Zero(weight.View(DType::kU8, {bytes}));
  const Tensor packed = weight.View(DType::kU8, {bytes});
  for (auto _ : state) {
    if (shape.gated) {
      backend.ops->GatedLinear({.out = out.View(shape.dtype, {rows, shape.n / 2}),
                                .x = x.View(shape.dtype, {rows, shape.k}),
                                .weight = packed,
                                .shape = shape});
    } else {
      backend.ops->Linear({.out = out.View(DType::kF32, {rows, shape.n}),
                           .x = x.View(shape.dtype, {rows, shape.k}),
                           .weight = packed,
                           .shape = shape});
    }
  }
  const auto per_iteration = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["FLOP/s"] =
      benchmark::Counter(2.0 * static_cast<double>(rows * shape.n * shape.k), per_iteration);
  state.counters["weight_B/s"] = benchmark::Counter(static_cast<double>(bytes), per_iteration);
}

void RegisterAll() {
  const int all_threads = static_cast<int>(std::thread::hardware_concurrency());
  for (const std::string& arithmetic : CpuArithmetics()) {
    for (const BenchShape& bench : kShapes) {
      for (int num_threads : {1, all_threads}) {
        const std::string name =
            arithmetic + "/" + bench.name + "/threads:" + std::to_string(num_threads);
        benchmark::RegisterBenchmark(name.c_str(), RunLinear, arithmetic, num_threads, bench.shape)
            ->ArgName("rows")
            ->Arg(1)
            ->Arg(8)
            ->Arg(32)
            ->Arg(128)
            ->Arg(512)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
}

}  // namespace
}  // namespace plumbline

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  plumbline::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
