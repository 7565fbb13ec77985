// RequestTracker: every request of the server, over HTTP and gRPC: those that generate are listed while they live, all
// are counted in the metrics and told to the log when they end. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/time/time.h"
#include "coordinator/api/api_metrics.h"
#include "coordinator/api/request_record.h"
#include "coordinator/api/request_trace.h"

namespace plumbline {

// Times that were observed since somebody last asked.
struct LatencyWindow {
  struct Series {
    int64_t count = 0;
    absl::Duration sum;
    absl::Duration max;
    void Add(absl::Duration value, int64_t times);
  };
  Series first_token;  // of a choice, from the request's arrival
  Series per_token;    // between tokens of a choice
};

class RequestTracker {
 public:
  // From any thread; must not block for long.
  using OnFinished = std::function<void(const RequestRecord&)>;

  explicit RequestTracker(OnFinished on_finished = nullptr);

  struct Origin {
    RequestProtocol protocol = RequestProtocol::kHttp;
    std::string endpoint;         // RequestRecord::endpoint
    std::string_view offered_id;  // the client's, or empty
  };
  // A request has come. Every trace ends before the tracker does.
  std::shared_ptr<RequestTrace> Begin(const Origin& origin);

  // Those that generate or score now, in order of arrival.
  std::vector<RequestRecord> Live() const;
  LatencyWindow TakeWindow();
  const ApiMetrics& metrics() const { return metrics_; }

 private:
  friend class RequestTrace;
  void List(const RequestTrace* trace);
  void Unlist(const RequestTrace* trace);
  void ObserveTimeToFirstToken(absl::Duration duration);
  void ObserveTokens(absl::Duration since_last, int64_t num_tokens);
  void Finish(const RequestRecord& record);

  const OnFinished on_finished_;
  ApiMetrics metrics_;
  mutable std::mutex mutex_;  // taken before a trace's own
  absl::btree_map<uint64_t, const RequestTrace*> live_;
  uint64_t next_serial_ = 0;
  LatencyWindow window_;
};

}  // namespace plumbline
