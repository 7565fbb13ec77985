#include "coordinator/cluster/membership.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "proto/status.h"

namespace plumbline {
namespace {

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string Name(const WorkerIdentity& worker) {
  return absl::StrCat(worker.host, " ", worker.pid);
}

}  // namespace

Membership::Membership(Options options)
    : options_(std::move(options)),
      arithmetic_(options_.arithmetic),
      members_(options_.mesh.size()) {}

absl::StatusOr<int> Membership::Join(WorkerIdentity worker) {
  const std::string name = absl::StrCat("worker ", plumbline::Name(worker));
  const int size = options_.mesh.size(), wanted = worker.wanted_rank;
  if (worker.build != options_.build) {
    return absl::FailedPreconditionError(absl::StrCat(name, " is build ", worker.build,
                                                      ", the coordinator is ", options_.build,
                                                      "; use the same build everywhere"));
  }
  if (wanted >= size) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " wants rank ", wanted, "; there are ranks 0 to ", size - 1));
  }
  int rank = wanted;
  if (wanted >= 0 && members_[wanted]) {
    return absl::AlreadyExistsError(
        absl::StrCat("rank ", wanted, " is already held by ", plumbline::Name(*members_[wanted])));
  }
  if (wanted < 0) {
    const std::vector<int> free = missing();
    if (free.empty())
      return absl::ResourceExhaustedError(absl::StrCat("all ", size, " ranks are held"));
    rank = free.front();
  }
  PL_RETURN_IF_ERROR(CheckArithmetic(worker));
  members_[rank] = std::move(worker);
  return rank;
}

bool Membership::empty() const {
  return std::all_of(members_.begin(), members_.end(), [](const auto& member) { return !member; });
}

bool Membership::complete() const { return missing().empty(); }

std::vector<int> Membership::missing() const {
  std::vector<int> ranks;
  for (size_t rank = 0; rank < members_.size(); ++rank) {
    if (!members_[rank]) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

absl::Status Membership::CheckArithmetic(const WorkerIdentity& worker) const {
  const std::string can = absl::StrCat("worker ", plumbline::Name(worker), " can do arithmetic ",
                                       absl::StrJoin(worker.arithmetics, ", "));
  if (!arithmetic_.empty()) {
    if (Contains(worker.arithmetics, arithmetic_)) return absl::OkStatus();
    return absl::UnimplementedError(absl::StrCat(can, "; this run is in ", arithmetic_));
  }
  if (empty()) return absl::OkStatus();
  const std::vector<std::string> common = CommonArithmetics();
  for (const std::string& name : common) {
    if (Contains(worker.arithmetics, name)) return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat(can, "; the others share ", absl::StrJoin(common, ", ")));
}

std::vector<std::string> Membership::CommonArithmetics() const {
  std::optional<std::vector<std::string>> common;
  for (const auto& member : members_) {
    if (!member) continue;
    if (!common) common = member->arithmetics;
    std::erase_if(*common,
                  [&](const std::string& name) { return !Contains(member->arithmetics, name); });
  }
  return common ? *common : std::vector<std::string>();
}

const std::string& Membership::FixArithmetic() {
  PL_CHECK(complete());
  if (arithmetic_.empty()) arithmetic_ = CommonArithmetics().front();
  return arithmetic_;
}

absl::Status Membership::CheckMemory(const std::vector<RankBytes>& needs) const {
  struct Host {
    int64_t needed = 0;
    int64_t available = 0;
    std::vector<int> ranks;
  };
  std::map<std::string, Host> hosts;
  for (const RankBytes& bytes : needs) {
    const WorkerIdentity& worker = *members_[bytes.rank];
    if (worker.memory_bytes > 0) {
      if (absl::Status status = CheckFits({bytes}, worker.memory_bytes); !status.ok()) {
        return absl::ResourceExhaustedError(
            absl::StrCat(plumbline::Name(worker), ": ", status.message()));
      }
    }
    Host& host = hosts[worker.host];
    host.needed += bytes.total();
    host.available = std::max(host.available, worker.host_memory_bytes);
    host.ranks.push_back(bytes.rank);
  }
  for (const auto& [name, host] : hosts) {
    if (host.available == 0 || host.needed <= host.available) continue;
    return absl::ResourceExhaustedError(absl::StrFormat(
        "host %s has %d bytes of memory free; its ranks %s need %d together, %d (%.2f GiB) more",
        name, host.available, absl::StrJoin(host.ranks, ", "), host.needed,
        host.needed - host.available,
        static_cast<double>(host.needed - host.available) / (1 << 30)));
  }
  return absl::OkStatus();
}

std::string Membership::Name(int rank) const {
  return members_[rank] ? absl::StrCat("rank ", rank, " (", plumbline::Name(*members_[rank]), ")")
                        : absl::StrCat("rank ", rank);
}

}  // namespace plumbline
