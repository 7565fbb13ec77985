// ApiMetrics: what the server tells Prometheus. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "coordinator/api/cluster_info.h"
#include "coordinator/api/request_record.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/access_control.h"

namespace plumbline {

class ApiMetrics {
 public:
  ApiMetrics();
  ~ApiMetrics();

  void CountRequest(const RequestRecord& finished);
  void ObserveTimeToFirstToken(absl::Duration duration);
  // `num_tokens` > 0 arrived together, so long after those before them.
  void ObserveTokens(absl::Duration since_last, int64_t num_tokens);

  struct Sources {
    EngineStats engine;
    const AccessControl* access = nullptr;  // may be null
    const ClusterInfo* cluster = nullptr;   // may be null
  };
  // Prometheus' text format, together with the sources' figures.
  std::string Serialize(const Sources& sources) const;

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace plumbline
