#include <algorithm>

#include "kernels/check.h"
#include "parallel/model_config.h"
#include "parallel/shard_plan.h"
#include "tests/fuzz/targets.h"

namespace plumbline {

// A configuration that is taken can be cut, and every rank's part lies inside its tensor.
void FuzzModelConfig(std::string_view json) {
  const auto parsed = ParseModelConfig(json);
  if (!parsed.ok()) return;
  const ModelConfig config = WithLayers(*parsed, std::min<int64_t>(parsed->num_layers(), 2));
  PL_CHECK(!config.Fingerprint().empty());
  for (const int tp : LegalTpSizes(config)) {
    const auto plan = ShardPlan::Make(config, {.tp = tp, .pp = 1});
    if (!plan.ok()) continue;
    for (const TensorPlan& tensor : plan->tensors()) {
      const TensorSlice slice = plan->SliceOf(tensor.name, tp - 1);
      PL_CHECK(slice.first_column >= 0 && slice.first_column + slice.num_columns <= tensor.columns);
      for (const RowRange& rows : slice.rows) {
        PL_CHECK(rows.first >= 0 && rows.count >= 0 && rows.first + rows.count <= tensor.rows);
      }
    }
  }
}

}  // namespace plumbline
