// RankProgress: how far one rank has come in an epoch. Told out of band, because ranks that wait in a collective and the
// one they wait for look alike in steps done; in calls begun they differ.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

namespace plumbline {

// What a rank is at. On the wire as these numbers.
enum class RankOperation : uint8_t {
  kIdle = 0,       // no step
  kCompute = 1,    // in a step, in no call
  kAllGather = 2,  // calls of the tensor-parallel group
  kAllToAll = 3,
  kBroadcast = 4,
  kSend = 5,       // to the next stage
  kRecv = 6,       // from the stage before
};
constexpr int kNumRankOperations = 7;

struct RankProgress {
  uint64_t step = 0;         // the last one begun
  RankOperation operation = RankOperation::kIdle;
  // Calls entered since the epoch began; all have been left but for the last of the kind that `operation` is;
  // one that failed is never left.
  uint64_t collectives = 0;  // equal numbers are the same call, on all ranks of a stage
  uint64_t sends = 0;        // the n-th is the next stage's n-th receive
  uint64_t receives = 0;

  bool operator==(const RankProgress&) const = default;
};

// "waiting in all-gather 418 of step 17".
std::string Describe(const RankProgress& progress);

// Written by the thread that drives the rank, read by any.
class ProgressRecord {
 public:
  void BeginStep(uint64_t step);
  void EndStep();
  // REQUIRES: an operation that is a call.
  void Enter(RankOperation call);
  void Leave();

  RankProgress Get() const;

 private:
  mutable std::mutex mutex_;
  RankProgress progress_;
};

}  // namespace plumbline
