// ServerLog: what a server writes to stderr: a line for every finished request and every event of the cluster, as text
// or as JSON. What libraries of ours give to spdlog goes the same way while it lives. Holds no prompts, no answers and
// no keys. Thread-safe.
#pragma once

#include <cstdio>
#include <mutex>
#include <string>

#include "coordinator/api/request_record.h"
#include "coordinator/cluster/cluster_event.h"

namespace plumbline {

class ServerLog {
 public:
  enum class Format { kText, kJson };
  // At most one at a time; `file` outlives it.
  explicit ServerLog(Format format, std::FILE* file = stderr);
  ~ServerLog();
  ServerLog(const ServerLog&) = delete;
  ServerLog& operator=(const ServerLog&) = delete;

  // Good answers to what is polled (health, metrics, the status page) are left out.
  void Request(const RequestRecord& record);
  void Cluster(const ClusterEvent& event);
  void WorkerLine(int rank, const std::string& line);
  void Message(const char* level, const std::string& text);

 private:
  void Write(std::string line);

  const Format format_;
  std::FILE* const file_;
  std::mutex mutex_;
};

}  // namespace plumbline
