// Communicator: moves bytes between the ranks of one group, in rank order, and never adds (sums are reduce.h's, in an
// order of our own, so every transport gives the same bits). Size 1 is the identity.
//
// Calls are collective and made in the same order by every rank, from the one thread that drives the rank's device;
// they return when the output may be read in stream order. A transport failure or a passed deadline gives
// UNAVAILABLE / DEADLINE_EXCEEDED naming rank and operation, and every later call fails at once with the same status.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/tensor.h"

namespace plumbline {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // out [size * in bytes]: the ranks' inputs in rank order. `in` may alias its own slice of out.
  virtual absl::Status AllGather(Tensor out, ConstTensor in) = 0;
  // in and out are cut in `size` equal slices: out slice r = rank r's slice number rank().
  virtual absl::Status AllToAll(Tensor out, ConstTensor in) = 0;
  virtual absl::Status Broadcast(Tensor data, int root) = 0;
  virtual absl::Status Send(ConstTensor data, int peer) = 0;
  virtual absl::Status Recv(Tensor data, int peer) = 0;

  // OK, or the failure that ended this group. Any thread.
  virtual absl::Status Health() const = 0;
  // Ends the group: calls under way in any rank of this process, and later ones, return `reason`; peers in other
  // processes see a lost connection. Any thread, idempotent.
  virtual void Abort(absl::Status reason) = 0;
};

// Where the ranks of a group leave each other their addresses. Thread-safe.
class RendezvousStore {
 public:
  virtual ~RendezvousStore() = default;
  virtual absl::Status Set(const std::string& key, const std::string& value) = 0;
  // Waits for the key; DEADLINE_EXCEEDED names the key.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) = 0;
};

// Ranks are threads of one process: member r of the returned group is rank r. The ranks' memory must be host memory.
std::vector<std::unique_ptr<Communicator>> MakeLocalGroup(int size, absl::Duration timeout);

struct GroupMember {
  int rank = 0;
  int size = 1;
  std::string group;         // distinct for every group and epoch that share a store
  std::string bind_address;  // address of this host that peers can reach; "127.0.0.1" inside one machine
  absl::Duration timeout = absl::Seconds(60);  // of one call
  absl::Duration connect_timeout = timeout;    // until all members have connected
};

// Ranks are processes; host memory over TCP. Blocks until all members have connected or connect_timeout has passed.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectGloo(const GroupMember& member, RendezvousStore& store);

// Ranks are processes of one host; host memory through memory they share. FAILED_PRECONDITION, on every member alike and
// naming one and its reason, when not all can.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectShm(const GroupMember& member, RendezvousStore& store);

// What carries the bytes between processes; kAuto: shared memory where all members of a group can, else Gloo.
enum class ProcessTransport { kAuto, kShm, kGloo };
// "auto", "shm" or "gloo".
absl::StatusOr<ProcessTransport> ParseProcessTransport(const std::string& name);
// All members must give the same transport.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectProcesses(const GroupMember& member, ProcessTransport transport,
                                                               RendezvousStore& store);

// Ranks are GPUs. UNIMPLEMENTED in a build without NCCL.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(const GroupMember& member, RendezvousStore& store);

// The store of one process, for threads and tests.
std::unique_ptr<RendezvousStore> MakeInProcessStore();

}  // namespace plumbline
