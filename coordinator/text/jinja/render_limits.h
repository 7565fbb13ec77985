// RenderLimits: what one rendering of a template may use; RESOURCE_EXHAUSTED past it.
#pragma once

#include <chrono>
#include <cstddef>

namespace plumbline {

struct RenderLimits {
  // Far above what a long conversation needs (a message takes some thousand steps), and a second or two of work at most.
  size_t max_steps = 10'000'000;
  // A step that walks over megabytes (a comparison, a copied list) counts no more than a small one.
  std::chrono::milliseconds max_time{10'000};
  size_t max_bytes = size_t{1} << 30;  // of all strings and containers ever made
};

}  // namespace plumbline
