// The connections of one Gloo group: a full mesh over TCP, addresses exchanged through a RendezvousStore.
#pragma once

#include <chrono>
#include <memory>

#include "absl/status/statusor.h"
#include "gloo/transport/context.h"
#include "gloo/transport/device.h"
#include "parallel/communicator.h"

namespace plumbline {

// The device's thread serves the context's connections, so the context goes first.
struct GlooLinks {
  std::shared_ptr<gloo::transport::Device> device;
  std::shared_ptr<gloo::transport::Context> context;
};

// Blocks until every pair of members is connected. DEADLINE_EXCEEDED names the rank that did not join.
absl::StatusOr<GlooLinks> ConnectGlooLinks(const GroupMember& member, RendezvousStore& store);

// Between 1 ms and a day: Gloo takes negative times for "the default" and adds to clocks without care.
std::chrono::milliseconds GlooMilliseconds(absl::Duration duration);

}  // namespace plumbline
