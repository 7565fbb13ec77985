// ProgressBar: bytes done on stderr, redrawn in place on a terminal, silent elsewhere. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace plumbline {

class ProgressBar {
 public:
  // One counter per part; the bar shows their sum.
  ProgressBar(std::string label, int num_parts, int64_t total_bytes);
  ~ProgressBar();  // ends the line
  void Set(int part, int64_t bytes_done);

 private:
  std::string label_;
  std::vector<int64_t> done_;
  int64_t total_;
  bool visible_;
  int last_percent_ = -1;
  std::mutex mutex_;
};

}  // namespace plumbline
