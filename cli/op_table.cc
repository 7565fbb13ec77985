#include "cli/op_table.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

namespace plumbline {
namespace {

double LimitSeconds(const OpCost& cost, const MachineRates& rates) {
  return std::max(cost.bytes / rates.bytes_per_second, cost.flops / rates.flops_per_second);
}

}  // namespace

std::string OpTable(const OpProfile& profile, const MachineRates& rates, int64_t num_runs) {
  std::vector<std::pair<std::string, OpTotals>> lines(profile.begin(), profile.end());
  std::sort(lines.begin(), lines.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  OpTotals sum;
  double limit = 0;
  std::string table = absl::StrFormat("%-42s %6s %10s %8s %10s %8s %9s %8s %8s\n", "op and shape", "calls", "us/call",
                                      "share", "MB/call", "GB/s", "GF/call", "GF/s", "of limit");
  const auto line = [&](const std::string& name, const OpTotals& totals, double limit_seconds, double all_seconds) {
    const double calls = static_cast<double>(totals.num_calls);
    absl::StrAppendFormat(&table, "%-42s %6d %10.1f %7.1f%% %10.2f %8.1f %9.3f %8.0f %7.0f%%\n", name,
                          totals.num_calls / num_runs, 1e6 * totals.seconds / calls,
                          100 * totals.seconds / all_seconds, 1e-6 * totals.cost.bytes / calls,
                          1e-9 * totals.cost.bytes / totals.seconds, 1e-9 * totals.cost.flops / calls,
                          1e-9 * totals.cost.flops / totals.seconds, 100 * limit_seconds / totals.seconds);
  };
  for (const auto& [name, totals] : lines) {
    sum.num_calls += totals.num_calls;
    sum.seconds += totals.seconds;
    sum.cost += totals.cost;
    limit += LimitSeconds(totals.cost, rates);
  }
  for (const auto& [name, totals] : lines) line(name, totals, LimitSeconds(totals.cost, rates), sum.seconds);
  if (sum.num_calls > 0) line("all", sum, limit, sum.seconds);
  return table;
}

}  // namespace plumbline
