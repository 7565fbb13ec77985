#include "worker/backend_factory.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace plumbline {

absl::StatusOr<Backend> MakeBackend(const BackendChoice& choice) {
  if (choice.device == "cuda") {
    const std::string problem = WhyNoCuda(choice.device_index);
    if (!problem.empty()) return absl::FailedPreconditionError(absl::StrCat("--device cuda: ", problem));
    return MakeCudaBackend(choice.device_index);
  }
  if (choice.device != "cpu") {
    return absl::InvalidArgumentError(absl::StrCat("device '", choice.device, "' is unknown; known are: cpu, cuda"));
  }
  if (choice.arithmetic == "reference-1") return MakeReferenceBackend();
  const std::vector<std::string> known = CpuArithmetics();
  const std::string arithmetic = choice.arithmetic.empty() ? known.front() : choice.arithmetic;
  if (std::find(known.begin(), known.end(), arithmetic) == known.end()) {
    return absl::InvalidArgumentError(absl::StrCat("this machine cannot run arithmetic '", arithmetic,
                                                   "'; it can run: ", absl::StrJoin(known, ", "),
                                                   ", reference-1"));
  }
  return MakeCpuBackend({.arithmetic = arithmetic, .num_threads = std::max(1, choice.num_threads)});
}

}  // namespace plumbline
