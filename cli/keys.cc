// plumbline keys: the API keys of a deployment, in a file that running servers follow.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/command.h"
#include "coordinator/security/key_store.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

struct KeysFlags {
  std::string store;
  bool json = false;
  int64_t id = 0;
  KeyChanges settings;
};

std::string Rfc3339(absl::Time time) { return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", time, absl::UTCTimeZone()); }

Json JsonOf(const KeyRecord& record) {
  Json json;
  json["id"] = record.id;
  json["name"] = record.settings.name;
  json["created"] = Rfc3339(record.created);
  json["revoked"] = record.revoked ? Json(Rfc3339(*record.revoked)) : Json();
  json["tokens_per_minute"] = record.settings.limits.tokens_per_minute;
  json["max_concurrent"] = record.settings.limits.max_concurrent;
  json["priority"] = record.settings.priority;
  json["share"] = record.settings.share;
  return json;
}

// Names are any bytes.
void Print(const Json& json) { std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str()); }

std::string LimitText(int64_t limit) { return limit == 0 ? "-" : std::to_string(limit); }

absl::Status CreateKey(const KeysFlags& flags) {
  PL_ASSIGN_OR_RETURN(const auto store, KeyStore::Open(flags.store, KeyStore::Mode::kCreate));
  const KeySettings settings = {.name = flags.settings.name.value_or(""),
                                .limits = {.tokens_per_minute = flags.settings.tokens_per_minute.value_or(0),
                                           .max_concurrent = flags.settings.max_concurrent.value_or(0)},
                                .priority = flags.settings.priority.value_or(0),
                                .share = flags.settings.share.value_or(1)};
  PL_ASSIGN_OR_RETURN(const NewKey made, store->Create(settings, absl::Now()));
  if (flags.json) {
    Json json = JsonOf(made.record);
    json["key"] = made.key;
    Print(json);
    return absl::OkStatus();
  }
  std::printf("%s\n", made.key.c_str());
  std::fprintf(stderr, "key %lld; it is not kept and cannot be shown again\n", static_cast<long long>(made.record.id));
  return absl::OkStatus();
}

absl::Status ListKeys(const KeysFlags& flags) {
  PL_ASSIGN_OR_RETURN(const auto store, KeyStore::Open(flags.store, KeyStore::Mode::kRead));
  PL_ASSIGN_OR_RETURN(const std::vector<KeyRecord> records, store->List());
  if (flags.json) {
    Json list = Json::array();
    for (const KeyRecord& record : records) list.push_back(JsonOf(record));
    Print(list);
    return absl::OkStatus();
  }
  std::printf("%6s  %17s  %14s  %8s  %5s  %-20s  %-20s  %s\n", "id", "tokens per minute", "max concurrent", "priority",
              "share", "created", "revoked", "name");
  for (const KeyRecord& record : records) {
    const KeySettings& settings = record.settings;
    std::printf("%6lld  %17s  %14s  %8lld  %5lld  %-20s  %-20s  %s\n", static_cast<long long>(record.id),
                LimitText(settings.limits.tokens_per_minute).c_str(), LimitText(settings.limits.max_concurrent).c_str(),
                static_cast<long long>(settings.priority), static_cast<long long>(settings.share),
                Rfc3339(record.created).c_str(), record.revoked ? Rfc3339(*record.revoked).c_str() : "-",
                settings.name.c_str());
  }
  return absl::OkStatus();
}

absl::Status RevokeKey(const KeysFlags& flags) {
  PL_ASSIGN_OR_RETURN(const auto store, KeyStore::Open(flags.store, KeyStore::Mode::kWrite));
  return store->Revoke(flags.id, absl::Now());
}

absl::Status SetKey(const KeysFlags& flags) {
  PL_ASSIGN_OR_RETURN(const auto store, KeyStore::Open(flags.store, KeyStore::Mode::kWrite));
  return store->Change(flags.id, flags.settings);
}

void AddStore(CLI::App& command, KeysFlags& flags) {
  command.add_option("--store", flags.store, "the file of keys")->required();
}

CLI::Option* AddName(CLI::App& command, KeysFlags& flags) {
  return command.add_option("--name", flags.settings.name, "for people: whose key it is");
}

void AddSettings(CLI::App& command, KeysFlags& flags) {
  command
      .add_option("--tokens-per-minute", flags.settings.tokens_per_minute, "prompt and generated together; 0: no limit")
      ->check(CLI::Range(int64_t{0}, kMaxTokensPerMinute));
  command.add_option("--max-concurrent", flags.settings.max_concurrent, "requests under way at once; 0: no limit")
      ->check(CLI::Range(int64_t{0}, kMaxConcurrentRequests));
  command.add_option("--priority", flags.settings.priority, "a key of a higher one always goes first; default 0")
      ->check(CLI::Range(-kMaxKeyPriority, kMaxKeyPriority));
  command.add_option("--share", flags.settings.share, "of what keys of its priority get when they compete; default 1")
      ->check(CLI::Range(int64_t{1}, kMaxKeyShare));
}

// The subcommand `name` of `keys`, which runs `run`.
CLI::App& AddAction(CLI::App& keys, CommandMain& chosen, const std::shared_ptr<KeysFlags>& flags, const char* name,
                    const char* what, absl::Status (*run)(const KeysFlags&)) {
  CLI::App* command = keys.add_subcommand(name, what);
  AddStore(*command, *flags);
  command->callback([flags, &chosen, run] { chosen = [flags, run] { return run(*flags); }; });
  return *command;
}

}  // namespace

void AddKeys(CLI::App& app, CommandMain& chosen) {
  const auto flags = std::make_shared<KeysFlags>();
  CLI::App* keys = app.add_subcommand("keys", "API keys with quotas, for serve --keys");
  keys->require_subcommand(1);
  keys->footer(
      "Example: plumbline keys create --store keys.db --name alice --tokens-per-minute 60000 --max-concurrent 4");

  CLI::App& create = AddAction(*keys, chosen, flags, "create",
                               "a new key, shown once; makes the file when it is not there", CreateKey);
  AddName(create, *flags)->required();
  AddSettings(create, *flags);
  create.add_flag("--json", flags->json, "the key and its settings as JSON");

  CLI::App& list = AddAction(*keys, chosen, flags, "list", "all keys but their secrets", ListKeys);
  list.add_flag("--json", flags->json, "as JSON");

  CLI::App& revoke = AddAction(*keys, chosen, flags, "revoke", "ends a key for good", RevokeKey);
  revoke.add_option("ID", flags->id, "of the list")->required();

  CLI::App& set = AddAction(*keys, chosen, flags, "set", "other settings for a key", SetKey);
  set.add_option("ID", flags->id, "of the list")->required();
  CLI::Option_group* changes = set.add_option_group("changes", "at least one of");
  AddName(*changes, *flags);
  AddSettings(*changes, *flags);
  changes->require_option(1, 5);
}

}  // namespace plumbline
