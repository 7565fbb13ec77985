#include "coordinator/security/key_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "coordinator/security/api_key.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int64_t kSchemaVersion = 1;
constexpr int64_t kApplicationId = 0x706c6b79;  // "plky": tells our files from other databases

// AUTOINCREMENT: an id is never used again, so it can stand in logs and bills.
constexpr char kMakeSchema[] = R"(
CREATE TABLE keys (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL,
  hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
  created INTEGER NOT NULL,
  revoked INTEGER,
  tokens_per_minute INTEGER NOT NULL CHECK (tokens_per_minute BETWEEN 0 AND 1000000000),
  max_concurrent INTEGER NOT NULL CHECK (max_concurrent BETWEEN 0 AND 1000000),
  priority INTEGER NOT NULL CHECK (priority BETWEEN -100 AND 100),
  share INTEGER NOT NULL CHECK (share BETWEEN 1 AND 1000)
) STRICT;
PRAGMA application_id = 0x706c6b79;
PRAGMA user_version = 1;
)";
constexpr char kColumns[] = "id, name, created, revoked, tokens_per_minute, max_concurrent, priority, share, hash";
constexpr int kHashColumn = 8;

KeyRecord RecordOf(const SqliteStatement& row) {
  KeyRecord record;
  record.id = row.Int(0);
  record.settings = {.name = row.Bytes(1),
                     .limits = {.tokens_per_minute = row.Int(4), .max_concurrent = row.Int(5)},
                     .priority = row.Int(6),
                     .share = row.Int(7)};
  record.created = absl::FromUnixSeconds(row.Int(2));
  if (!row.IsNull(3)) record.revoked = absl::FromUnixSeconds(row.Int(3));
  return record;
}

struct Range {
  int64_t min;
  int64_t max;
};

absl::Status CheckRange(const char* name, int64_t value, const Range& range) {
  if (value >= range.min && value <= range.max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be between ", range.min, " and ", range.max, ", not ", value));
}

absl::Status CheckName(const std::string& name) {
  const auto is_control = [](char c) { return absl::ascii_iscntrl(static_cast<unsigned char>(c)); };
  if (name.empty() || name.size() > kMaxKeyNameBytes || std::any_of(name.begin(), name.end(), is_control)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the name of a key must have 1 to ", kMaxKeyNameBytes, " bytes and no control characters"));
  }
  // A slip of the hand must not put a secret where lists show it.
  if (IsApiKeyForm(name)) return absl::InvalidArgumentError("the name of a key must not be a key");
  return absl::OkStatus();
}

absl::Status CheckLimits(const QuotaLimits& limits) {
  PL_RETURN_IF_ERROR(CheckRange("tokens per minute", limits.tokens_per_minute, {0, kMaxTokensPerMinute}));
  return CheckRange("concurrent requests", limits.max_concurrent, {0, kMaxConcurrentRequests});
}

absl::Status CheckPriority(int64_t priority) {
  return CheckRange("priority", priority, {-kMaxKeyPriority, kMaxKeyPriority});
}

absl::Status CheckShare(int64_t share) { return CheckRange("share", share, {1, kMaxKeyShare}); }

absl::Status CheckSettings(const KeySettings& settings) {
  PL_RETURN_IF_ERROR(CheckName(settings.name));
  PL_RETURN_IF_ERROR(CheckLimits(settings.limits));
  PL_RETURN_IF_ERROR(CheckPriority(settings.priority));
  return CheckShare(settings.share);
}

// Rolled back unless committed.
class Transaction {
 public:
  explicit Transaction(SqliteDatabase& database) : database_(database) {}
  ~Transaction() {
    if (is_open_) database_.Execute("ROLLBACK").IgnoreError();
  }
  absl::Status Begin() {
    PL_RETURN_IF_ERROR(database_.Execute("BEGIN IMMEDIATE"));
    is_open_ = true;
    return absl::OkStatus();
  }
  absl::Status Commit() {
    PL_RETURN_IF_ERROR(database_.Execute("COMMIT"));
    is_open_ = false;
    return absl::OkStatus();
  }

 private:
  SqliteDatabase& database_;
  bool is_open_ = false;
};

absl::Status MakeSchema(SqliteDatabase& database) {
  constexpr char kCountObjects[] = "SELECT count(*) FROM sqlite_schema";
  PL_ASSIGN_OR_RETURN(int64_t num_objects, database.Number(kCountObjects));
  if (num_objects > 0) return absl::OkStatus();
  // Readers of a file with a write-ahead log never wait for a writer.
  PL_RETURN_IF_ERROR(database.Execute("PRAGMA journal_mode = WAL"));
  Transaction transaction(database);
  PL_RETURN_IF_ERROR(transaction.Begin());
  PL_ASSIGN_OR_RETURN(num_objects, database.Number(kCountObjects));
  if (num_objects > 0) return absl::OkStatus();  // another process was faster
  PL_RETURN_IF_ERROR(database.Execute(kMakeSchema));
  return transaction.Commit();
}

absl::Status CheckSchema(SqliteDatabase& database) {
  PL_ASSIGN_OR_RETURN(const int64_t application, database.Number("PRAGMA application_id"));
  PL_ASSIGN_OR_RETURN(const int64_t version, database.Number("PRAGMA user_version"));
  if (application != kApplicationId) {
    return absl::InvalidArgumentError(
        absl::StrCat(database.path(), " is not a file of API keys; `plumbline keys create` makes one"));
  }
  if (version != kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        database.path(), " has version ", version, " of the key table, this program knows version ", kSchemaVersion));
  }
  PL_ASSIGN_OR_RETURN(SqliteStatement check, database.Prepare("PRAGMA integrity_check(1)"));
  PL_ASSIGN_OR_RETURN(const bool has_row, check.Step());
  if (!has_row || check.Bytes(0) != "ok") {
    return absl::DataLossError(absl::StrCat(database.path(), " is damaged: ", has_row ? check.Bytes(0) : ""));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<KeyStore>> KeyStore::Open(const std::string& path, Mode mode) {
  PL_ASSIGN_OR_RETURN(auto database, SqliteDatabase::Open(path, mode));
  auto store = std::unique_ptr<KeyStore>(new KeyStore(std::move(database)));
  PL_RETURN_IF_ERROR(store->Prepare(mode));
  return store;
}

absl::Status KeyStore::Prepare(Mode mode) {
  if (mode == Mode::kCreate) PL_RETURN_IF_ERROR(MakeSchema(*database_));
  PL_RETURN_IF_ERROR(CheckSchema(*database_));
  PL_ASSIGN_OR_RETURN(
      find_, database_->Prepare(absl::StrCat("SELECT ", kColumns, " FROM keys WHERE hash = ?1 AND revoked IS NULL")));
  return absl::OkStatus();
}

absl::StatusOr<NewKey> KeyStore::Create(const KeySettings& settings, absl::Time now) {
  PL_RETURN_IF_ERROR(CheckSettings(settings));
  NewKey made = {.record = {.settings = settings, .created = absl::FromUnixSeconds(absl::ToUnixSeconds(now))},
                 .key = MakeApiKey()};
  const std::lock_guard lock(mutex_);
  Transaction transaction(*database_);
  PL_RETURN_IF_ERROR(transaction.Begin());
  PL_ASSIGN_OR_RETURN(const int64_t num_keys, database_->Number("SELECT count(*) FROM keys"));
  if (num_keys >= kMaxKeys) {
    return absl::FailedPreconditionError(
        absl::StrCat(database_->path(), " has ", num_keys, " keys, the most there can be"));
  }
  PL_ASSIGN_OR_RETURN(
      SqliteStatement insert,
      database_->Prepare("INSERT INTO keys (name, hash, created, tokens_per_minute, max_concurrent, priority, share) "
                         "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"));
  insert.BindText(1, settings.name);
  insert.BindBytes(2, HashApiKey(made.key));
  insert.Bind(3, absl::ToUnixSeconds(now));
  insert.Bind(4, settings.limits.tokens_per_minute);
  insert.Bind(5, settings.limits.max_concurrent);
  insert.Bind(6, settings.priority);
  insert.Bind(7, settings.share);
  PL_RETURN_IF_ERROR(insert.Run());
  made.record.id = database_->last_insert_id();
  PL_RETURN_IF_ERROR(transaction.Commit());
  return made;
}

absl::StatusOr<std::vector<KeyRecord>> KeyStore::List() {
  const std::lock_guard lock(mutex_);
  PL_ASSIGN_OR_RETURN(SqliteStatement select,
                      database_->Prepare(absl::StrCat("SELECT ", kColumns, " FROM keys ORDER BY id")));
  std::vector<KeyRecord> records;
  while (true) {
    PL_ASSIGN_OR_RETURN(const bool has_row, select.Step());
    if (!has_row) return records;
    records.push_back(RecordOf(select));
  }
}

absl::Status KeyStore::Revoke(int64_t id, absl::Time now) {
  const std::lock_guard lock(mutex_);
  PL_ASSIGN_OR_RETURN(SqliteStatement update,
                      database_->Prepare("UPDATE keys SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL"));
  update.Bind(1, id);
  update.Bind(2, absl::ToUnixSeconds(now));
  PL_RETURN_IF_ERROR(update.Run());
  return CheckChanged(id);
}

absl::Status KeyStore::Change(int64_t id, const KeyChanges& changes) {
  if (changes.name) PL_RETURN_IF_ERROR(CheckName(*changes.name));
  PL_RETURN_IF_ERROR(CheckLimits({.tokens_per_minute = changes.tokens_per_minute.value_or(0),
                                  .max_concurrent = changes.max_concurrent.value_or(0)}));
  PL_RETURN_IF_ERROR(CheckPriority(changes.priority.value_or(0)));
  PL_RETURN_IF_ERROR(CheckShare(changes.share.value_or(1)));
  const std::lock_guard lock(mutex_);
  // What is not bound is NULL.
  PL_ASSIGN_OR_RETURN(
      SqliteStatement update,
      database_->Prepare("UPDATE keys SET name = coalesce(?2, name), "
                         "tokens_per_minute = coalesce(?3, tokens_per_minute), "
                         "max_concurrent = coalesce(?4, max_concurrent), priority = coalesce(?5, priority), "
                         "share = coalesce(?6, share) WHERE id = ?1 AND revoked IS NULL"));
  update.Bind(1, id);
  if (changes.name) update.BindText(2, *changes.name);
  if (changes.tokens_per_minute) update.Bind(3, *changes.tokens_per_minute);
  if (changes.max_concurrent) update.Bind(4, *changes.max_concurrent);
  if (changes.priority) update.Bind(5, *changes.priority);
  if (changes.share) update.Bind(6, *changes.share);
  PL_RETURN_IF_ERROR(update.Run());
  return CheckChanged(id);
}

absl::Status KeyStore::CheckChanged(int64_t id) {
  if (database_->num_changes() == 1) return absl::OkStatus();
  PL_ASSIGN_OR_RETURN(SqliteStatement select, database_->Prepare("SELECT 1 FROM keys WHERE id = ?1"));
  select.Bind(1, id);
  PL_ASSIGN_OR_RETURN(const bool exists, select.Step());
  const std::string which = absl::StrCat(database_->path(), ": key ", id);
  if (exists) return absl::FailedPreconditionError(which + " is revoked");
  return absl::NotFoundError(which + " does not exist; `plumbline keys list` shows them");
}

absl::StatusOr<std::optional<KeyRecord>> KeyStore::Find(std::string_view key) {
  if (!IsApiKeyForm(key)) return std::nullopt;
  const std::string hash = HashApiKey(key);
  const std::lock_guard lock(mutex_);
  // How long the index takes tells nothing: a stranger cannot choose the hash that is compared.
  find_->BindBytes(1, hash);
  PL_ASSIGN_OR_RETURN(const bool has_row, find_->Step());
  std::optional<KeyRecord> found;
  if (has_row && SameHash(find_->Bytes(kHashColumn), hash)) found = RecordOf(*find_);
  find_->Reset();
  return found;
}

}  // namespace plumbline
