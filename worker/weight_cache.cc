#include "worker/weight_cache.h"

#include <algorithm>
#include <filesystem>
#include <map>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "proto/status.h"
#include "worker/huge_pages.h"
#include "worker/safetensors.h"
#include "worker/sha256.h"

namespace plumbline {
namespace {

namespace fs = std::filesystem;

constexpr char kFormat[] = "plumbline packed weights 1";
constexpr char kKey[] = "key";
constexpr char kChecksum[] = "xxh3 ";  // and the weight's name
constexpr int64_t kPieceBytes = int64_t{16} << 20;
constexpr int64_t kSmallWeight = int64_t{256} << 10;  // few pages of any size
constexpr double kGb = 1e9;
constexpr auto kAbandonedAfter = std::chrono::hours(24);  // a partial file that nobody writes any more

std::string ShortHash(const std::string& text) {
  Sha256 hash;
  hash.Update(text);
  return hash.HexDigest().substr(0, 12);
}

std::string ChecksumOf(const void* bytes, size_t size) {
  return absl::StrCat(absl::Hex(XXH3_64bits(bytes, size), absl::kZeroPad16));
}

}  // namespace

WeightCache::WeightCache(Options options) : options_(std::move(options)) {
  PL_CHECK(!options_.layout.empty());
  const std::string version = absl::StrCat(kFormat, "\n", options_.layout, "\n", options_.checkpoint.fingerprint);
  key_ = absl::StrCat(version, "\n", options_.share);
  model_ = ShortHash(options_.checkpoint.folder);
  version_ = ShortHash(version);
  path_ = absl::StrCat(options_.folder, "/", model_, "-", version_, "-", ShortHash(options_.share), ".safetensors");
  const absl::Status status = Map();
  if (status.ok() || absl::IsNotFound(status)) return;
  Log(absl::StrCat(status.message(), "; it is written anew"));
  file_.reset();
}

WeightCache::~WeightCache() = default;

absl::Status WeightCache::Map() {
  PL_ASSIGN_OR_RETURN(file_, SafetensorsFile::Open(path_));
  const auto key = file_->metadata().find(kKey);
  if (key == file_->metadata().end() || key->second != key_) {
    return absl::DataLossError(absl::StrCat(path_, ": is of other weights than its name says"));
  }
  file_->PreferHugePages();
  return absl::OkStatus();
}

absl::StatusOr<WeightCache::Found> WeightCache::Find(const std::string& name, int64_t num_bytes) {
  PL_CHECK(is_mapped());
  const absl::StatusOr<ConstTensor> weight = file_->Read(name, DType::kU8);
  if (!weight.ok()) return absl::DataLossError(weight.status().message());
  if (weight->num_elements() != num_bytes) {
    return absl::DataLossError(absl::StrCat(path_, ": weight ", name, " has ", weight->num_elements(), " bytes; ",
                                            num_bytes, " are expected"));
  }
  CollapseIntoHugePages(weight->raw(), num_bytes);
  const auto checksum = file_->metadata().find(absl::StrCat(kChecksum, name));
  if (reinterpret_cast<uintptr_t>(weight->raw()) % 64 != 0 || checksum == file_->metadata().end() ||
      checksum->second != ChecksumOf(weight->raw(), num_bytes)) {
    return absl::DataLossError(absl::StrCat(path_, ": weight ", name, " does not have its checksum: the file is damaged"));
  }
  const bool should_copy = num_bytes > kSmallWeight && !LiesOnHugePages(weight->raw(), num_bytes);
  (should_copy ? copied_bytes_ : shared_bytes_) += num_bytes;
  return Found{ConstTensor(weight->raw(), DType::kU8, {num_bytes}), should_copy};
}

void WeightCache::Release(const ConstTensor& packed) const {
  file_->Release(static_cast<const std::byte*>(packed.raw()), packed.num_bytes());
}

void WeightCache::LogUse() const {
  Log(absl::StrFormat("packed weights are mapped from %s: %.2f GB shared, %.2f GB copied", path_,
                      static_cast<double>(shared_bytes_) / kGb, static_cast<double>(copied_bytes_) / kGb));
}

void WeightCache::Discard(const absl::Status& damage) {
  Log(absl::StrCat(damage.message(), "; it is written anew"));
  file_.reset();
}

void WeightCache::Save(const std::vector<Weight>& weights, const std::function<void()>& on_progress) const {
  const absl::Time start = absl::Now();
  if (const absl::Status status = Write(weights, on_progress); !status.ok()) {
    return Log(absl::StrCat(status.message(), "; going on without"));
  }
  Log(absl::StrFormat("packed weights were written to %s in %.1f s", path_, absl::ToDoubleSeconds(absl::Now() - start)));
  RemoveStale();
}

absl::Status WeightCache::Write(const std::vector<Weight>& weights, const std::function<void()>& on_progress) const {
  std::vector<SafetensorsTensor> tensors;
  std::map<std::string, std::string> metadata = {{kKey, key_}};
  uint64_t total = 0;
  for (const Weight& weight : weights) {
    const int64_t size = weight.packed.num_elements();
    tensors.push_back({weight.name, DType::kU8, {size}});
    metadata[absl::StrCat(kChecksum, weight.name)] = ChecksumOf(weight.packed.raw(), size);
    total += size;
    on_progress();
  }
  std::error_code error;
  fs::create_directories(options_.folder, error);
  const fs::space_info space = fs::space(options_.folder, error);
  if (error) return absl::UnavailableError(absl::StrCat(options_.folder, ": ", error.message()));
  if (space.available < total) {
    return absl::ResourceExhaustedError(absl::StrFormat("%s: %.2f GB are free, the weights take %.2f GB", options_.folder,
                                                        static_cast<double>(space.available) / kGb,
                                                        static_cast<double>(total) / kGb));
  }
  PL_ASSIGN_OR_RETURN(auto writer, SafetensorsWriter::Create(path_, tensors, metadata));
  for (const Weight& weight : weights) {
    const auto* bytes = static_cast<const std::byte*>(weight.packed.raw());
    for (int64_t done = 0, size = weight.packed.num_elements(); done < size; done += kPieceBytes) {
      PL_RETURN_IF_ERROR(writer->Append(bytes + done, std::min(kPieceBytes, size - done)));
      on_progress();
    }
  }
  return writer->Finish();
}

void WeightCache::RemoveStale() const {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!absl::StartsWith(name, model_ + "-")) continue;
    const bool is_abandoned = absl::StrContains(name, ".partial.") &&
                              fs::file_time_type::clock::now() - entry.last_write_time(error) > kAbandonedAfter;
    const bool is_other =
        absl::EndsWith(name, ".safetensors") && !absl::StartsWith(name, absl::StrCat(model_, "-", version_, "-"));
    if (!error && (is_abandoned || is_other) && fs::remove(entry.path(), error)) {
      Log(absl::StrCat(entry.path().string(), " removed: it was of an earlier state of this model"));
    }
  }
}

void WeightCache::Log(const std::string& line) const {
  if (options_.on_line) options_.on_line(absl::StrCat("weight cache: ", line));
}

}  // namespace plumbline
