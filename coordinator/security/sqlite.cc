#include "coordinator/security/sqlite.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int kBusyTimeoutMs = 5000;  // another process writes

absl::StatusCode CodeOf(int result) {
  switch (result & 0xff) {
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
      return absl::StatusCode::kDataLoss;
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
      return absl::StatusCode::kPermissionDenied;
    case SQLITE_CONSTRAINT:
      return absl::StatusCode::kInvalidArgument;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_IOERR:
    case SQLITE_FULL:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

// Messages of SQLite name tables and columns, never values.
absl::Status ErrorOf(int result, const std::string& path, sqlite3* database) {
  const char* detail = database != nullptr ? sqlite3_errmsg(database) : sqlite3_errstr(result);
  return absl::Status(CodeOf(result), absl::StrCat(path, ": ", detail));
}

absl::Status MakeFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (file < 0) return absl::PermissionDeniedError(absl::StrCat("cannot make ", path, ": ", std::strerror(errno)));
  ::close(file);
  return absl::OkStatus();
}

}  // namespace

void SqliteStatement::Finalizer::operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }

void SqliteStatement::Bind(int parameter, int64_t value) { sqlite3_bind_int64(statement_.get(), parameter, value); }

void SqliteStatement::BindText(int parameter, std::string_view text) {
  sqlite3_bind_text64(statement_.get(), parameter, text.data(), text.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
}

void SqliteStatement::BindBytes(int parameter, std::string_view bytes) {
  sqlite3_bind_blob64(statement_.get(), parameter, bytes.data(), bytes.size(), SQLITE_TRANSIENT);
}

absl::StatusOr<bool> SqliteStatement::Step() {
  const int result = sqlite3_step(statement_.get());
  if (result == SQLITE_ROW) return true;
  if (result == SQLITE_DONE) {
    Reset();
    return false;
  }
  absl::Status status = ErrorOf(result, *path_, sqlite3_db_handle(statement_.get()));
  Reset();
  return status;
}

absl::Status SqliteStatement::Run() {
  while (true) {
    PL_ASSIGN_OR_RETURN(const bool has_row, Step());
    if (!has_row) return absl::OkStatus();
  }
}

void SqliteStatement::Reset() { sqlite3_reset(statement_.get()); }

int64_t SqliteStatement::Int(int column) const { return sqlite3_column_int64(statement_.get(), column); }

bool SqliteStatement::IsNull(int column) const { return sqlite3_column_type(statement_.get(), column) == SQLITE_NULL; }

std::string SqliteStatement::Bytes(int column) const {
  const auto* data = static_cast<const char*>(sqlite3_column_blob(statement_.get(), column));
  const int size = sqlite3_column_bytes(statement_.get(), column);
  return data == nullptr ? std::string() : std::string(data, static_cast<size_t>(size));
}

void SqliteDatabase::Closer::operator()(sqlite3* database) const { sqlite3_close(database); }

absl::StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(const std::string& path, Mode mode) {
  if (path.empty()) return absl::InvalidArgumentError("the name of a database file is empty");
  if (mode == Mode::kCreate) {
    PL_RETURN_IF_ERROR(MakeFile(path));
  } else if (!std::filesystem::exists(path)) {
    return absl::NotFoundError(absl::StrCat("there is no file ", path));
  }
  auto opened = std::unique_ptr<SqliteDatabase>(new SqliteDatabase(path));
  // An absolute path has none of the special meanings that ":memory:" or an empty name have to SQLite.
  sqlite3* database = nullptr;
  const int result = sqlite3_open_v2(std::filesystem::absolute(path).c_str(), &database,
                                     SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
  opened->database_.reset(database);
  if (result != SQLITE_OK) return ErrorOf(result, path, database);
  sqlite3_busy_timeout(database, kBusyTimeoutMs);
  PL_RETURN_IF_ERROR(opened->Execute("PRAGMA trusted_schema = OFF"));
  if (mode == Mode::kRead) PL_RETURN_IF_ERROR(opened->Execute("PRAGMA query_only = ON"));
  return opened;
}

absl::Status SqliteDatabase::Execute(const char* sql) {
  const int result = sqlite3_exec(database_.get(), sql, nullptr, nullptr, nullptr);
  return result == SQLITE_OK ? absl::OkStatus() : ErrorOf(result, path_, database_.get());
}

absl::StatusOr<SqliteStatement> SqliteDatabase::Prepare(std::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  const int result = sqlite3_prepare_v2(database_.get(), sql.data(), static_cast<int>(sql.size()), &statement, nullptr);
  if (result != SQLITE_OK) return ErrorOf(result, path_, database_.get());
  return SqliteStatement(statement, &path_);
}

absl::StatusOr<int64_t> SqliteDatabase::Number(const char* sql) {
  PL_ASSIGN_OR_RETURN(SqliteStatement statement, Prepare(sql));
  PL_ASSIGN_OR_RETURN(const bool has_row, statement.Step());
  return has_row ? statement.Int(0) : 0;
}

int64_t SqliteDatabase::last_insert_id() const { return sqlite3_last_insert_rowid(database_.get()); }

int SqliteDatabase::num_changes() const { return sqlite3_changes(database_.get()); }

}  // namespace plumbline
