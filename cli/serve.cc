// plumbline serve: a coordinator and the workers it starts on this host. plumbline coordinator: the same for workers that
// dial in from anywhere.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "cli/progress_bar.h"
#include "cli/server_log.h"
#include "cli/tls_flags.h"
#include "cli/watched_runner.h"
#include "cli/worker_fleet.h"
#include "coordinator/api/grpc_service.h"
#include "coordinator/api/http_server.h"
#include "coordinator/api/openai_api.h"
#include "coordinator/api/request_tracker.h"
#include "coordinator/cluster/join_token.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/access_control.h"
#include "coordinator/text/model_text.h"
#include "proto/status.h"
#include "worker/join_token.h"

namespace plumbline {
namespace {

// Tokens of a prompt whose recurrent state is worth the step more that saving it costs: about a step's worth.
constexpr int64_t kMinSavedPrompt = 512;

struct ServeFlags {
  ModelFlags model;
  std::string chat_template, served_model_name;
  std::string http = "127.0.0.1:8080";
  std::string grpc = "127.0.0.1:50051";
  std::string worker_listen = "127.0.0.1:0";
  std::string join_token_file;
  std::string api_key_file;
  std::string keys;
  TlsFiles tls;          // towards clients
  TlsFiles cluster_tls;  // towards workers
  int64_t max_context = 0;
  int64_t max_queue = 1024;
  int64_t drain_seconds = 30;
  bool launch = true;
  std::string transport = "auto";
  std::string log_format = "text";
};

struct HostPort {
  std::string host;
  uint16_t port = 0;
};

absl::StatusOr<HostPort> ParseHostPort(const std::string& flag, const std::string& address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " '", address, "': expected HOST:PORT"));
  }
  return HostPort{address.substr(0, colon), static_cast<uint16_t>(port)};
}

// The token of a file; a new one is made and written there, readable by its owner alone, when there is none.
absl::StatusOr<std::string> JoinTokenOf(const std::string& path) {
  if (path.empty()) return std::string();
  if (std::filesystem::exists(path)) return ReadJoinToken(path);
  const std::string token = MakeJoinToken();
  std::ofstream(path).close();
  std::error_code error;
  std::filesystem::permissions(path, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write, error);
  std::ofstream file(path);
  file << token << "\n";
  if (!file.flush() || error) return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
  return token;
}

absl::StatusOr<std::unique_ptr<AccessControl>> OpenAccess(const ServeFlags& flags) {
  AccessOptions options;
  if (!flags.api_key_file.empty()) {
    std::ifstream file(flags.api_key_file);
    if (!std::getline(file, options.operator_key) || options.operator_key.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("--api-key-file ", flags.api_key_file, ": no key in it"));
    }
  }
  if (!flags.keys.empty()) {
    PL_ASSIGN_OR_RETURN(options.key_store, KeyStore::Open(flags.keys, KeyStore::Mode::kRead));
  }
  return std::make_unique<AccessControl>(std::move(options));
}

SamplingParams SamplingDefaults(const GenerationDefaults& file) {
  SamplingParams params;
  params.temperature = file.temperature.value_or(params.temperature);
  params.top_p = file.top_p.value_or(params.top_p);
  params.min_p = file.min_p.value_or(params.min_p);
  params.top_k = std::max(0, file.top_k.value_or(params.top_k));
  params.repetition_penalty = file.repetition_penalty.value_or(params.repetition_penalty);
  return params;
}

// SIGINT and SIGTERM arrive at WaitFor alone; to be made before any thread is started.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  // True when one came within the time.
  bool WaitFor(absl::Duration duration) {
    const timespec time = absl::ToTimespec(duration);
    return sigtimedwait(&set_, nullptr, &time) > 0;
  }

 private:
  sigset_t set_;
};

class Server {
 public:
  explicit Server(ServeFlags flags)
      : flags_(std::move(flags)),
        log_(flags_.log_format == "json" ? ServerLog::Format::kJson : ServerLog::Format::kText),
        requests_([this](const RequestRecord& record) { log_.Request(record); }) {}

  absl::Status Run() {
    StopSignals signals;
    PL_RETURN_IF_ERROR(Start());
    PL_ASSIGN_OR_RETURN(const bool ready, WaitReady(signals));
    if (!ready) return absl::OkStatus();
    const char* scheme = tls_.is_set() ? "https" : "http";
    std::printf("%s is ready\n  HTTP  %s://%s:%u/v1\n  gRPC  %s:%u%s\n  page  %s://%s:%u/\n", served_.name.c_str(), scheme,
                http_address_.host.c_str(), http_->port(), grpc_address_.host.c_str(), grpc_->port(),
                tls_.is_set() ? " over TLS" : "", scheme, http_address_.host.c_str(), http_->port());
    std::fflush(stdout);
    while (!signals.WaitFor(absl::Milliseconds(100))) {
      if (const auto fatal = watched_->fatal()) return *fatal;
    }
    log_.Message("info", absl::StrCat("draining: no new requests; up to ", flags_.drain_seconds, " s for those under way"));
    const absl::Time deadline = absl::Now() + absl::Seconds(flags_.drain_seconds);
    engine_->Drain(deadline);
    http_->Stop(absl::Now() + absl::Seconds(1));
    grpc_->Stop(absl::Now() + absl::Seconds(1));
    return absl::OkStatus();
  }

 private:
  absl::Status Start() {
    PL_ASSIGN_OR_RETURN(tls_, LoadTlsIdentity(flags_.tls));
    PL_ASSIGN_OR_RETURN(TlsIdentity cluster_tls, LoadMemberIdentity(flags_.cluster_tls));
    PL_ASSIGN_OR_RETURN(model_, OpenNamedModel(flags_.model));
    PL_ASSIGN_OR_RETURN(http_address_, ParseHostPort("--http", flags_.http));
    PL_ASSIGN_OR_RETURN(grpc_address_, ParseHostPort("--grpc", flags_.grpc));
    if (model_.dir.empty()) return absl::InvalidArgumentError("serving needs --model DIR with a tokenizer.json");
    PL_ASSIGN_OR_RETURN(access_, OpenAccess(flags_));
    PL_ASSIGN_OR_RETURN(text_, LoadModelText(model_.dir, flags_.chat_template));
    const CacheLimits limits = LimitsFor(flags_.model, model_);
    if (flags_.launch) PL_RETURN_IF_ERROR(CheckHostMemory(model_, flags_.model.mesh, limits));
    PL_ASSIGN_OR_RETURN(const std::string token, JoinTokenOf(flags_.join_token_file));
    PL_ASSIGN_OR_RETURN(fleet_, WorkerFleet::Start(flags_.model, model_,
                                                   {.worker_listen = flags_.worker_listen,
                                                    .join_token = token,
                                                    .tls = std::move(cluster_tls),
                                                    .worker_tls = flags_.cluster_tls,
                                                    .launch = flags_.launch,
                                                    .transport = flags_.transport,
                                                    .on_event = [this](const ClusterEvent& event) { log_.Cluster(event); },
                                                    .on_worker_line = [this](int rank, const std::string& line) {
                                                      log_.WorkerLine(rank, line);
                                                    }}));
    watched_ = std::make_unique<WatchedRunner>(&fleet_->cluster());
    int64_t context = std::min(model_.config.max_positions, limits.max_tokens);  // one sequence must fit the cache
    if (flags_.max_context > 0) context = std::min(context, flags_.max_context);
    engine_ = Engine::Create({.max_queued_requests = flags_.max_queue,
                              .max_running_sequences = limits.max_sequences,
                              .max_context_tokens = context,
                              .vocab_size = model_.config.vocab,
                              .eos_token_ids = EosIds(),
                              .prefix_cache = flags_.model.prefix_cache == "on",
                              .min_saved_prompt = kMinSavedPrompt},
                             watched_.get(), text_->tokenizer.get());
    served_.name = flags_.served_model_name.empty()
                       ? std::filesystem::canonical(model_.dir).filename().string()
                       : flags_.served_model_name;
    served_.text = text_.get();
    served_.max_model_len = context;
    served_.vocab_size = static_cast<int32_t>(model_.config.vocab);
    served_.fingerprint = model_.config.Fingerprint();
    served_.created = std::time(nullptr);
    served_.sampling_defaults = SamplingDefaults(text_->generation);
    return StartServers();
  }

  std::vector<int32_t> EosIds() const {
    std::vector<int32_t> ids = model_.config.eos_token_ids;
    ids.insert(ids.end(), text_->eos_ids.begin(), text_->eos_ids.end());
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  }

  absl::Status StartServers() {
    api_ = std::make_unique<OpenAiApi>(OpenAiApiOptions{.engine = engine_.get(),
                                                        .model = &served_,
                                                        .cluster = &fleet_->cluster(),
                                                        .requests = &requests_,
                                                        .access = access_.get()});
    PL_ASSIGN_OR_RETURN(http_, HttpServer::Start({.host = http_address_.host, .port = http_address_.port, .tls = tls_},
                                                 api_.get()));
    PL_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start({.address = absl::StrCat(grpc_address_.host, ":", grpc_address_.port),
                                                  .tls = tls_,
                                                  .engine = engine_.get(),
                                                  .model = &served_,
                                                  .cluster = &fleet_->cluster(),
                                                  .requests = &requests_,
                                                  .access = access_.get(),
                                                  .other_services = {}}));
    return absl::OkStatus();
  }

  // False when a signal came first.
  absl::StatusOr<bool> WaitReady(StopSignals& signals) {
    if (!flags_.launch) {
      std::printf("waiting for %d workers at %s\n", flags_.model.mesh.size(), fleet_->cluster().worker_address().c_str());
      std::fflush(stdout);
    }
    constexpr int64_t kScale = 1000000;  // the bar counts millionths of each rank's share
    ProgressBar bar("loading", flags_.model.mesh.size(), flags_.model.mesh.size() * kScale);
    while (!watched_->was_ready()) {
      if (const auto fatal = watched_->fatal()) return *fatal;
      for (const RankInfo& rank : fleet_->cluster().Snapshot().ranks) {
        bar.Set(rank.rank, static_cast<int64_t>(rank.load_fraction * kScale));
      }
      if (signals.WaitFor(absl::Milliseconds(20))) return false;
    }
    return true;
  }

  ServeFlags flags_;
  NamedModel model_;
  HostPort http_address_, grpc_address_;
  TlsIdentity tls_;
  ServedModel served_;
  // Destroyed from the last to the first: servers, engine, workers, and what they write to.
  ServerLog log_;
  RequestTracker requests_;
  std::unique_ptr<AccessControl> access_;
  std::unique_ptr<ModelText> text_;
  std::unique_ptr<WorkerFleet> fleet_;
  std::unique_ptr<WatchedRunner> watched_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<OpenAiApi> api_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<GrpcServer> grpc_;
};

void AddServeFlags(CLI::App& command, ServeFlags& flags) {
  AddModelSource(command, flags.model);
  AddRunFlags(command, flags.model);
  AddPrefixCacheFlags(command, flags.model);
  command.add_option("--http", flags.http, "HOST:PORT of the OpenAI-compatible interface; port 0: any");
  command.add_option("--grpc", flags.grpc, "HOST:PORT of the gRPC interface; port 0: any");
  command.add_option("--chat-template", flags.chat_template, "Jinja file to use instead of the model's own");
  command.add_option("--served-model-name", flags.served_model_name, "the model's name in the API; default: its folder's");
  command.add_option("--api-key-file", flags.api_key_file, "file with the operator's key, which has no quotas");
  command.add_option("--keys", flags.keys, "file of API keys with quotas, as `plumbline keys` writes it");
  AddServerTlsFlags(command, flags.tls);
  AddClusterTlsFlags(command, flags.cluster_tls);
  command.add_option("--max-context", flags.max_context,
                     "prompt and output of a request together; default: the model's limit")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--max-queue", flags.max_queue, "waiting requests; more get 429")->check(CLI::PositiveNumber);
  command.add_option("--transport", flags.transport,
                     "between ranks; auto: shm, memory they share, inside one host, else gloo, TCP")
      ->check(CLI::IsMember({"auto", "shm", "gloo"}));
  command.add_option("--log-format", flags.log_format, "of what goes to stderr: lines of text, or one JSON object per line")
      ->check(CLI::IsMember({"text", "json"}));
  command.add_option("--drain-seconds", flags.drain_seconds, "patience with running requests on SIGTERM")
      ->check(CLI::NonNegativeNumber);
}

absl::Status RunServer(ServeFlags flags) { return Server(std::move(flags)).Run(); }

}  // namespace

void AddServe(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = app.add_subcommand("serve", "serve a model from this host: coordinator and worker processes");
  AddServeFlags(*command, *flags);
  command->footer("Example: plumbline serve --model deploy/demo_model/model --tp 2 --pp 2 --http 127.0.0.1:8080");
  command->callback([flags, &chosen] { chosen = [flags] { return RunServer(*flags); }; });
}

void AddCoordinator(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<ServeFlags>();
  flags->launch = false;
  flags->worker_listen = "0.0.0.0:50050";
  CLI::App* command = app.add_subcommand("coordinator", "serve a model from workers that dial in from any host");
  AddServeFlags(*command, *flags);
  command->add_option("--worker-listen", flags->worker_listen, "HOST:PORT where workers dial in");
  command->add_option("--join-token-file", flags->join_token_file, "the workers' secret; made when the file is not there")
      ->required();
  command->footer("Example: plumbline coordinator --model /models/demo --tp 2 --pp 2 --join-token-file join.token");
  command->callback([flags, &chosen] { chosen = [flags] { return RunServer(*flags); }; });
}

}  // namespace plumbline
