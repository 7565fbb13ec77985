// ApiMetrics: what the server tells Prometheus. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/access_control.h"

namespace plumbline {

class ApiMetrics {
 public:
  ApiMetrics();
  ~ApiMetrics();

  // `route` is one of the server's own, never what a client sent: labels are bounded.
  void CountRequest(const std::string& route, int http_status, absl::Duration duration);
  void ObserveTimeToFirstToken(absl::Duration duration);
  // `num_tokens` > 0 arrived together, so long after those before them.
  void ObserveTokens(absl::Duration since_last, int64_t num_tokens);

  // Prometheus' text format, together with the engine's figures and those of `access`, which may be null.
  std::string Serialize(const EngineStats& stats, const AccessControl* access) const;

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace plumbline
