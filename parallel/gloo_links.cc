#include "parallel/gloo_links.h"

#include <netdb.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <exception>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gloo/transport/address.h"
#include "gloo/transport/pair.h"
#include "gloo/transport/tcp/device.h"
#include "parallel/group_errors.h"

namespace plumbline {

std::chrono::milliseconds GlooMilliseconds(absl::Duration duration) {
  return absl::ToChronoMilliseconds(std::clamp(duration, absl::Milliseconds(1), absl::Hours(24)));
}

namespace {

// Gloo's event thread polls without sleeping while a caller holds the lock it needs. If waking it displaces that very
// caller from its core, both lose a scheduler tick: milliseconds. A batch thread does not displace; it inherits the policy.
class BatchThreads {
 public:
  BatchThreads() {
    const sched_param param = {};
    saved_ = sched_getscheduler(0);
    changed_ = saved_ == SCHED_OTHER && sched_setscheduler(0, SCHED_BATCH, &param) == 0;
  }
  ~BatchThreads() {
    const sched_param param = {};
    if (changed_) sched_setscheduler(0, saved_, &param);
  }
  BatchThreads(const BatchThreads&) = delete;

 private:
  int saved_ = 0;
  bool changed_ = false;
};

// Gloo would go on with an unset result when the name cannot be resolved.
absl::Status CheckBindAddress(const GroupMember& member) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* result = nullptr;
  const int rc = member.bind_address.empty() ? EAI_NONAME
                                             : getaddrinfo(member.bind_address.c_str(), nullptr, &hints, &result);
  if (rc == 0) {
    freeaddrinfo(result);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(NameOf(member), ": bind address '", member.bind_address, "': ",
                                                 gai_strerror(rc),
                                                 "; give a name or IP address of this host that its peers can reach"));
}

// What one rank leaves in the store: the addresses it listens at, one per peer in rank order, itself left out.
std::string AddressKey(const GroupMember& member, int rank) { return absl::StrCat(member.group, "/gloo/", rank); }

absl::StatusOr<std::vector<char>> PeerAddress(const GroupMember& member, int peer, RendezvousStore& store,
                                              absl::Duration timeout) {
  absl::StatusOr<std::string> hex = store.Get(AddressKey(member, peer), timeout);
  if (!hex.ok()) return DidNotJoin(member, peer, hex.status());
  const std::string bytes = absl::HexStringToBytes(*hex);
  const size_t length = bytes.size() / (member.size - 1);
  if (length == 0 || bytes.size() % (member.size - 1) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(NameOf(member), ": rank ", peer, " left ", bytes.size(),
                                                   " bytes of addresses; expected one for each of ", member.size - 1,
                                                   " peers: do the ranks agree on the group's size?"));
  }
  const int index = member.rank < peer ? member.rank : member.rank - 1;
  return std::vector<char>(bytes.begin() + index * length, bytes.begin() + (index + 1) * length);
}

}  // namespace

absl::StatusOr<GlooLinks> ConnectGlooLinks(const GroupMember& member, RendezvousStore& store) {
  if (absl::Status status = CheckBindAddress(member); !status.ok()) return status;
  const absl::Time deadline = absl::Now() + member.connect_timeout;
  std::string stage = absl::StrCat("listening at ", member.bind_address);
  try {
    GlooLinks links;
    {
      BatchThreads batch;
      links.device = gloo::transport::tcp::CreateDevice(member.bind_address.c_str());
    }
    links.context = links.device->createContext(member.rank, member.size);
    links.context->setTimeout(GlooMilliseconds(member.connect_timeout / 5));  // gloo waits five times this for a connection
    std::string addresses;
    for (int peer = 0; peer < member.size; ++peer) {
      if (peer == member.rank) continue;
      const std::vector<char> bytes = links.context->createPair(peer)->address().bytes();
      addresses.append(bytes.begin(), bytes.end());
    }
    absl::Status status = store.Set(AddressKey(member, member.rank), absl::BytesToHexString(addresses));
    if (!status.ok()) return status;
    // All addresses before the first connection: a member that is missing is told by name.
    std::vector<std::vector<char>> peers(member.size);
    for (int peer = 0; peer < member.size; ++peer) {
      if (peer == member.rank) continue;
      auto address = PeerAddress(member, peer, store, deadline - absl::Now());
      if (!address.ok()) return address.status();
      peers[peer] = *std::move(address);
    }
    for (int peer = 0; peer < member.size; ++peer) {
      if (peer == member.rank) continue;
      stage = absl::StrCat("connecting to rank ", peer);
      links.context->getPair(peer)->connect(peers[peer]);
    }
    return links;
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat(NameOf(member), ", ", stage, ": ", error.what()));
  }
}

}  // namespace plumbline
