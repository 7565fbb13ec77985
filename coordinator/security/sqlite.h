// A SQLite database in a file. Errors are a Status that names the file: DATA_LOSS when it is no database or a damaged
// one, UNAVAILABLE when it stays locked or the disk fails, PERMISSION_DENIED, NOT_FOUND. Used by one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;
struct sqlite3_stmt;

namespace plumbline {

// A prepared statement. Parameters count from 1, columns from 0.
class SqliteStatement {
 public:
  void Bind(int parameter, int64_t value);
  void BindText(int parameter, std::string_view text);
  void BindBytes(int parameter, std::string_view bytes);

  // True when there is a row to read; after the last one the statement is reset.
  absl::StatusOr<bool> Step();
  // Steps to the end.
  absl::Status Run();
  // Forgets the rows that are left, so that later changes by others can be seen.
  void Reset();

  int64_t Int(int column) const;
  bool IsNull(int column) const;
  std::string Bytes(int column) const;  // also of text

 private:
  friend class SqliteDatabase;
  struct Finalizer {
    void operator()(sqlite3_stmt* statement) const;
  };
  SqliteStatement(sqlite3_stmt* statement, const std::string* path) : statement_(statement), path_(path) {}

  std::unique_ptr<sqlite3_stmt, Finalizer> statement_;
  const std::string* path_;  // the database's
};

// Outlives its statements.
class SqliteDatabase {
 public:
  enum class Mode {
    kRead,
    kWrite,
    kCreate
  };  // kCreate: makes the file, readable by its owner alone, when it is not there

  static absl::StatusOr<std::unique_ptr<SqliteDatabase>> Open(const std::string& path, Mode mode);

  absl::Status Execute(const char* sql);  // may hold several statements
  absl::StatusOr<SqliteStatement> Prepare(std::string_view sql);
  absl::StatusOr<int64_t> Number(const char* sql);  // the first column of the first row
  int64_t last_insert_id() const;
  int num_changes() const;  // rows of the last statement

  const std::string& path() const { return path_; }

 private:
  struct Closer {
    void operator()(sqlite3* database) const;
  };
  explicit SqliteDatabase(std::string path) : path_(std::move(path)) {}

  const std::string path_;
  std::unique_ptr<sqlite3, Closer> database_;
};

}  // namespace plumbline
