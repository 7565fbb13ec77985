// The twin of nccl_communicator for builds without NCCL.
#include "parallel/communicator.h"

namespace plumbline {

absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(const GroupMember& member, RendezvousStore&) {
  return absl::UnimplementedError("group '" + member.group +
                                  "': this build has no NCCL, so its ranks cannot be GPUs; use Gloo between CPU "
                                  "processes, or a build with CUDA and NCCL");
}

}  // namespace plumbline
