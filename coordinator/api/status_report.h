// StatusReport: what GET /status answers: the cluster, the load of the last minutes, the caches and the live requests,
// as JSON. A thread of its own takes a sample each second. Thread-safe.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/api/cluster_info.h"
#include "coordinator/api/request_tracker.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/status_history.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/access_control.h"

namespace plumbline {

struct StatusReportOptions {
  const Engine* engine = nullptr;
  const ServedModel* model = nullptr;
  const ClusterInfo* cluster = nullptr;  // may be null
  RequestTracker* requests = nullptr;
  absl::Duration sample_interval = absl::Seconds(1);
};

class StatusReport {
 public:
  // What the options point to outlives the report.
  explicit StatusReport(const StatusReportOptions& options);
  ~StatusReport();

  // query: "" or "since=N", N an earlier answer's history.next: only samples that are new. Of live requests the operator
  // sees all, a key its own. INVALID_ARGUMENT names the parameter.
  absl::StatusOr<std::string> Json(std::string_view query, const Caller& caller) const;

 private:
  void TakeSamples();

  const StatusReportOptions options_;
  const absl::Time started_;
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool is_stopping_ = false;
  StatusHistory history_;
  std::thread sampler_;
};

}  // namespace plumbline
