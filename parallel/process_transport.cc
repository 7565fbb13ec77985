#include "absl/strings/str_cat.h"
#include "parallel/communicator.h"

namespace plumbline {

absl::StatusOr<ProcessTransport> ParseProcessTransport(const std::string& name) {
  if (name == "auto") return ProcessTransport::kAuto;
  if (name == "shm") return ProcessTransport::kShm;
  if (name == "gloo") return ProcessTransport::kGloo;
  return absl::InvalidArgumentError(absl::StrCat("transport '", name, "': expected auto, shm or gloo"));
}

absl::StatusOr<std::unique_ptr<Communicator>> ConnectProcesses(const GroupMember& member, ProcessTransport transport,
                                                               RendezvousStore& store) {
  if (transport == ProcessTransport::kGloo) return ConnectGloo(member, store);
  auto shared = ConnectShm(member, store);
  const bool cannot = absl::IsFailedPrecondition(shared.status());  // on all members alike
  return cannot && transport == ProcessTransport::kAuto ? ConnectGloo(member, store) : std::move(shared);
}

}  // namespace plumbline
