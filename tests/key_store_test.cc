// The file of API keys: what it keeps, what it does not, and what happens while others write it.
#include "coordinator/security/key_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/security/access_control.h"
#include "coordinator/security/api_key.h"

namespace plumbline {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Mode = KeyStore::Mode;

const absl::Time kNow = absl::FromUnixSeconds(1'700'000'000);

class KeyStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / absl::StrCat("key_store_test.", ::getpid());
    fs::remove_all(folder_);
    fs::create_directory(folder_);
    path_ = (folder_ / "keys.db").string();
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::unique_ptr<KeyStore> Open(Mode mode) {
    auto store = KeyStore::Open(path_, mode);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  absl::Status OpenError(Mode mode) { return KeyStore::Open(path_, mode).status(); }

  // Every byte of the database and what SQLite puts beside it.
  std::string Bytes() const {
    std::stringstream bytes;
    for (const auto& entry : fs::directory_iterator(folder_)) bytes << std::ifstream(entry.path()).rdbuf();
    return bytes.str();
  }

  fs::path folder_;
  std::string path_;
};

TEST_F(KeyStoreTest, KeysAreUnlikeAndTheirHashesKnown) {
  // SHA-256 of "abc": FIPS 180-2, appendix B.1.
  EXPECT_EQ(HashApiKey("abc"), std::string("\xba\x78\x16\xbf\x8f\x01\xcf\xea\x41\x41\x40\xde\x5d\xae\x22\x23"
                                           "\xb0\x03\x61\xa3\x96\x17\x7a\x9c\xb4\x10\xff\x61\xf2\x00\x15\xad",
                                           32));
  std::set<std::string> keys;
  for (int i = 0; i < 100; ++i) keys.insert(MakeApiKey());
  EXPECT_EQ(keys.size(), 100);
  for (const std::string& key : keys) EXPECT_TRUE(IsApiKeyForm(key)) << key.size();
  EXPECT_EQ(BearerKey("Bearer x"), "x");
  EXPECT_EQ(BearerKey("bearer  x "), "x");
  EXPECT_EQ(BearerKey("Basic x"), "");
  EXPECT_EQ(BearerKey("Bearer"), "");
}

TEST_F(KeyStoreTest, KeepsSettingsAndHashesButNoKeys) {
  std::string key;
  {
    const auto store = Open(Mode::kCreate);
    const auto made = store->Create(
        {.name = "alice", .limits = {.tokens_per_minute = 1000, .max_concurrent = 3}, .priority = 5, .share = 7}, kNow);
    ASSERT_TRUE(made.ok()) << made.status();
    key = made->key;
    EXPECT_THAT(Bytes(), HasSubstr(HashApiKey(key)));
    EXPECT_THAT(Bytes(), Not(HasSubstr(key.substr(3))));
  }
  struct stat info;
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600);
  const auto store = Open(Mode::kRead);
  const auto found = store->Find(key);
  ASSERT_TRUE(found.ok() && found->has_value()) << found.status();
  const KeyRecord& record = **found;
  EXPECT_EQ(record.id, 1);
  EXPECT_EQ(record.settings.name, "alice");
  EXPECT_EQ(record.settings.limits, (QuotaLimits{.tokens_per_minute = 1000, .max_concurrent = 3}));
  EXPECT_EQ(record.settings.priority, 5);
  EXPECT_EQ(record.settings.share, 7);
  EXPECT_EQ(record.created, kNow);
  EXPECT_FALSE(record.revoked);
  std::string wrong = key;
  wrong.back() = wrong.back() == '0' ? '1' : '0';
  EXPECT_FALSE(store->Find(wrong)->has_value());
  EXPECT_FALSE(store->Find("")->has_value());
  EXPECT_FALSE(store->Find(HashApiKey(key))->has_value());
}

TEST_F(KeyStoreTest, OpenStoresSeeChangesWithTheNextLookUp) {
  const auto writer = Open(Mode::kCreate);
  const auto reader = Open(Mode::kRead);
  const NewKey alice = *writer->Create({.name = "alice"}, kNow);
  const NewKey bob = *writer->Create({.name = "bob"}, kNow);
  EXPECT_EQ((*reader->Find(bob.key))->id, 2);
  ASSERT_TRUE(writer->Change(2, {.tokens_per_minute = 50}).ok());
  EXPECT_EQ((*reader->Find(bob.key))->settings.limits, (QuotaLimits{.tokens_per_minute = 50}));
  EXPECT_EQ((*reader->Find(bob.key))->settings.name, "bob");
  ASSERT_TRUE(writer->Change(2, {.name = "robert", .max_concurrent = 4}).ok());
  EXPECT_EQ((*reader->Find(bob.key))->settings.name, "robert");
  EXPECT_EQ((*reader->Find(bob.key))->settings.limits, (QuotaLimits{.tokens_per_minute = 50, .max_concurrent = 4}));
  ASSERT_TRUE(writer->Revoke(2, kNow + absl::Seconds(9)).ok());
  EXPECT_FALSE(reader->Find(bob.key)->has_value());
  EXPECT_TRUE(reader->Find(alice.key)->has_value());
  EXPECT_EQ(writer->Revoke(2, kNow).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(writer->Change(2, {.name = "x"}).code(), absl::StatusCode::kFailedPrecondition);
  const absl::Status unknown = writer->Revoke(3, kNow);
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr(path_ + ": key 3"));
  const auto list = *reader->List();
  ASSERT_EQ(list.size(), 2);
  EXPECT_EQ(list[1].revoked, kNow + absl::Seconds(9));
  EXPECT_EQ(list[1].settings.limits.tokens_per_minute, 50);
}

// A writer that hangs in the middle of a change must not stop a server.
TEST_F(KeyStoreTest, LookUpsDoNotWaitForWriters) {
  const NewKey alice = *Open(Mode::kCreate)->Create({.name = "alice"}, kNow);
  const auto reader = Open(Mode::kRead);
  const auto writer = *SqliteDatabase::Open(path_, SqliteDatabase::Mode::kWrite);
  ASSERT_TRUE(writer->Execute("BEGIN IMMEDIATE; UPDATE keys SET revoked = 1").ok());
  const absl::Time begin = absl::Now();
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(reader->Find(alice.key)->has_value());
  EXPECT_LT(absl::Now() - begin, absl::Seconds(2));
  ASSERT_TRUE(writer->Execute("COMMIT").ok());
  EXPECT_FALSE(reader->Find(alice.key)->has_value());
}

TEST_F(KeyStoreTest, ManyMayWriteAndReadAtOnce) {
  const NewKey alice = *Open(Mode::kCreate)->Create({.name = "alice"}, kNow);
  const auto reader = Open(Mode::kRead);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const auto store = Open(Mode::kCreate);
      for (int j = 0; j < 20; ++j) {
        EXPECT_TRUE(store->Create({.name = absl::StrCat(i)}, kNow).ok());
        EXPECT_TRUE(reader->Find(alice.key)->has_value());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<int64_t> ids;
  const auto list = *reader->List();
  for (const KeyRecord& record : list) ids.insert(record.id);
  EXPECT_EQ(ids.size(), 81);
}

TEST_F(KeyStoreTest, BadSettingsAreNamed) {
  const auto store = Open(Mode::kCreate);
  const auto error = [&](const KeySettings& settings) {
    return std::string(store->Create(settings, kNow).status().message());
  };
  EXPECT_THAT(error({.name = ""}), HasSubstr("name"));
  EXPECT_THAT(error({.name = "a\nb"}), HasSubstr("name"));
  EXPECT_THAT(error({.name = std::string(129, 'a')}), HasSubstr("name"));
  EXPECT_THAT(error({.name = MakeApiKey()}), HasSubstr("must not be a key"));
  EXPECT_THAT(error({.name = "a", .limits = {.tokens_per_minute = -1}}), HasSubstr("tokens per minute"));
  EXPECT_THAT(error({.name = "a", .limits = {.max_concurrent = 1'000'001}}), HasSubstr("concurrent"));
  EXPECT_THAT(error({.name = "a", .share = 0}), HasSubstr("share"));
  EXPECT_THAT(error({.name = "a", .priority = 101}), HasSubstr("priority"));
  EXPECT_TRUE(store->List()->empty());
  EXPECT_FALSE(Open(Mode::kRead)->Create({.name = "a"}, kNow).ok());  // a server cannot write
}

TEST_F(KeyStoreTest, FilesThatAreMissingOrSomethingElseAreNamed) {
  EXPECT_EQ(OpenError(Mode::kRead).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(OpenError(Mode::kWrite).code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(fs::exists(path_));
  std::ofstream(path_) << std::string(5000, 'x');
  for (const Mode mode : {Mode::kRead, Mode::kWrite, Mode::kCreate}) {
    EXPECT_EQ(OpenError(mode).code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(OpenError(mode).message()), HasSubstr(path_));
  }
  fs::remove(path_);
  {
    const auto other = *SqliteDatabase::Open(path_, SqliteDatabase::Mode::kCreate);
    ASSERT_TRUE(other->Execute("CREATE TABLE songs (title TEXT)").ok());
  }
  EXPECT_THAT(std::string(OpenError(Mode::kCreate).message()), HasSubstr("is not a file of API keys"));
  path_ = (folder_ / "newer.db").string();
  Open(Mode::kCreate);
  ASSERT_TRUE((*SqliteDatabase::Open(path_, SqliteDatabase::Mode::kWrite))->Execute("PRAGMA user_version = 2").ok());
  EXPECT_THAT(std::string(OpenError(Mode::kRead).message()), HasSubstr("version 2"));
  path_ = (folder_ / "none" / "keys.db").string();
  EXPECT_THAT(std::string(OpenError(Mode::kCreate).message()), HasSubstr(path_));
}

TEST_F(KeyStoreTest, ADamagedFileIsFoundAtTheStart) {
  {
    const auto store = Open(Mode::kCreate);
    for (int i = 0; i < 200; ++i) ASSERT_TRUE(store->Create({.name = absl::StrCat("key ", i)}, kNow).ok());
  }
  ASSERT_GT(fs::file_size(path_), 3 * 4096);
  Open(Mode::kRead);  // whole so far
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(2 * 4096);
  file << std::string(4096, '\x5a');
  file.close();
  const absl::Status status = OpenError(Mode::kRead);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

// ---- who a client is ----

TEST_F(KeyStoreTest, CallersAreTheOperatorAKeyOrNobody) {
  EXPECT_TRUE(AccessControl({}).Authenticate("")->is_operator());
  const auto writer = Open(Mode::kCreate);
  const NewKey alice = *writer->Create({.name = "alice", .limits = {.max_concurrent = 1}}, kNow);
  AccessControl access({.operator_key = "secret", .key_store = Open(Mode::kRead)});
  EXPECT_TRUE(access.Authenticate("Bearer secret")->is_operator());
  const Caller caller = *access.Authenticate("Bearer " + alice.key);
  EXPECT_FALSE(caller.is_operator());
  EXPECT_EQ(caller.key_id, 1);
  const auto ticket = access.Admit(caller);
  EXPECT_TRUE(ticket.ok());
  EXPECT_FALSE(access.Admit(caller).ok());
  EXPECT_TRUE(access.Admit(*access.Authenticate("Bearer secret")).ok());
  for (const std::string& wrong :
       std::vector<std::string>{"Bearer secre", "Bearer secrets", "Bearer " + alice.key + "0", alice.key}) {
    const absl::Status status = access.Authenticate(wrong).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << wrong;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secre")));
  }
  ASSERT_TRUE(writer->Revoke(1, kNow).ok());
  EXPECT_EQ(access.Authenticate("Bearer " + alice.key).status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(access.num_refused(), ElementsAre(1, 4, 0, 0, 1));  // a key without "Bearer" is none
}

// Nobody gets in because keys cannot be read.
TEST_F(KeyStoreTest, AStoreThatFailsLetsNobodyIn) {
  const NewKey alice = *Open(Mode::kCreate)->Create({.name = "alice"}, kNow);
  AccessControl access({.key_store = Open(Mode::kRead)});
  ASSERT_TRUE(access.Authenticate("Bearer " + alice.key).ok());
  const auto writer = *SqliteDatabase::Open(path_, SqliteDatabase::Mode::kWrite);
  ASSERT_TRUE(writer->Execute("DROP TABLE keys").ok());
  const absl::Status status = access.Authenticate("Bearer " + alice.key).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr(path_)));
  EXPECT_THAT(access.num_refused(), ElementsAre(0, 0, 1, 0, 0));
}

}  // namespace
}  // namespace plumbline
