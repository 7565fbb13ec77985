// KeyStore: the API keys of a deployment in a SQLite file, of which only hashes are kept. `plumbline keys` writes it
// while servers have it open; they see a change with the next request. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/security/quotas.h"
#include "coordinator/security/sqlite.h"

namespace plumbline {

inline constexpr int64_t kMaxKeys = 100'000;  // revoked ones included
inline constexpr size_t kMaxKeyNameBytes = 128;
inline constexpr int64_t kMaxKeyPriority = 100;  // and the least is its negative
inline constexpr int64_t kMaxKeyShare = 1000;

struct KeySettings {
  std::string name;  // for people; need not be unique
  QuotaLimits limits;
  int64_t priority = 0;  // a key of a higher one always goes first
  int64_t share = 1;     // of what the keys of its priority get when they compete
};

struct KeyRecord {
  int64_t id = 0;  // never used again
  KeySettings settings;
  absl::Time created;
  std::optional<absl::Time> revoked;
};

struct NewKey {
  KeyRecord record;
  std::string key;  // known here and now only
};

// What is absent stays as it is.
struct KeyChanges {
  std::optional<std::string> name;
  std::optional<int64_t> tokens_per_minute;
  std::optional<int64_t> max_concurrent;
  std::optional<int64_t> priority;
  std::optional<int64_t> share;
};

class KeyStore {
 public:
  using Mode = SqliteDatabase::Mode;

  // Reads the whole file once, to find damage. Errors name the file.
  static absl::StatusOr<std::unique_ptr<KeyStore>> Open(const std::string& path, Mode mode);

  // INVALID_ARGUMENT names the setting.
  absl::StatusOr<NewKey> Create(const KeySettings& settings, absl::Time now);
  absl::StatusOr<std::vector<KeyRecord>> List();  // by id
  // Both: NOT_FOUND for an unknown id, FAILED_PRECONDITION for a revoked key.
  absl::Status Revoke(int64_t id, absl::Time now);
  absl::Status Change(int64_t id, const KeyChanges& changes);

  // Nothing when there is no such key, or it is revoked. Microseconds: one look-up in an index.
  absl::StatusOr<std::optional<KeyRecord>> Find(std::string_view key);

 private:
  explicit KeyStore(std::unique_ptr<SqliteDatabase> database) : database_(std::move(database)) {}
  absl::Status Prepare(Mode mode);
  absl::Status CheckChanged(int64_t id);

  std::mutex mutex_;
  const std::unique_ptr<SqliteDatabase> database_;
  std::optional<SqliteStatement> find_;
};

}  // namespace plumbline
