#include "cli/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace plumbline {

ProgressBar::ProgressBar(std::string label, int num_parts, int64_t total_bytes)
    : label_(std::move(label)),
      done_(num_parts, 0),
      total_(std::max<int64_t>(1, total_bytes)),
      visible_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (visible_ && last_percent_ >= 0) std::fputc('\n', stderr);
}

void ProgressBar::Set(int part, int64_t bytes_done) {
  std::lock_guard lock(mutex_);
  done_[part] = bytes_done;
  const int64_t sum = std::accumulate(done_.begin(), done_.end(), int64_t{0});
  const int percent = static_cast<int>(std::min<int64_t>(100, sum * 100 / total_));
  if (!visible_ || percent == last_percent_) return;
  last_percent_ = percent;
  const std::string bar(percent / 4, '#'), rest(25 - percent / 4, '.');
  std::fprintf(stderr, "\r%s [%s%s] %3d %%  %.2f of %.2f GB", label_.c_str(), bar.c_str(), rest.c_str(), percent,
               static_cast<double>(sum) / 1e9, static_cast<double>(total_) / 1e9);
}

}  // namespace plumbline
