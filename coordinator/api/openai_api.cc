#include "coordinator/api/openai_api.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/fault_json.h"
#include "coordinator/api/readiness.h"
#include "coordinator/api/traced_responder.h"
#include "coordinator/api/web_assets.h"
#include "coordinator/text/tokenizer.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr size_t kMaxSequencesPerRequest = 1024;
constexpr char kModelPath[] = "/v1/models/";
constexpr char kNoRoute[] = "none";
constexpr char kAssetPath[] = "/web/";

std::string RandomId(const char* prefix) {
  return absl::StrFormat("%s%016x%016x", prefix, RandomSeed(), RandomSeed());
}

const nlohmann::ordered_json* OrNull(const nlohmann::ordered_json& json) {
  return json.is_null() ? nullptr : &json;
}

ChatRequest ChatRequestOf(const ChatFields& chat) {
  return {.messages = &chat.messages,
          .tools = OrNull(chat.tools),
          .add_generation_prompt = chat.add_generation_prompt,
          .chat_template_kwargs = OrNull(chat.arguments)};
}

}  // namespace

struct OpenAiApi::Call {
  HttpRequest request;
  std::shared_ptr<TracedResponder> responder;
  std::shared_ptr<RequestTrace> trace;
  Caller caller;
  absl::Time arrival = absl::Now();

  void Answer(const ResponseJson& json) { responder->Respond({.body = Print(json)}); }
};

struct OpenAiApi::Route {
  const char* method;
  const char* path;  // one that ends in '/' stands for all below it, but for the root
  absl::Status (OpenAiApi::*answer)(Call&);
  enum class Access { kKey, kOpen } access = Access::kKey;
};

const OpenAiApi::Route OpenAiApi::kRoutes[] = {
    {"POST", "/v1/chat/completions", &OpenAiApi::ChatCompletions},
    {"POST", "/v1/completions", &OpenAiApi::Completions},
    {"GET", "/v1/models", &OpenAiApi::ListModels},
    {"GET", kModelPath, &OpenAiApi::GetModel},
    {"POST", "/tokenize", &OpenAiApi::Tokenize},
    {"POST", "/detokenize", &OpenAiApi::Detokenize},
    {"GET", "/tokenizer_info", &OpenAiApi::TokenizerInfo},
    {"GET", "/", &OpenAiApi::Page, Route::Access::kOpen},
    {"GET", kAssetPath, &OpenAiApi::Page, Route::Access::kOpen},
    {"GET", "/status", &OpenAiApi::Status},
    {"GET", "/health", &OpenAiApi::Health, Route::Access::kOpen},
    {"GET", "/ready", &OpenAiApi::Ready, Route::Access::kOpen},
    {"GET", "/metrics", &OpenAiApi::Metrics, Route::Access::kOpen},
    {"", "/v1/files", &OpenAiApi::NotSupported},
    {"", "/v1/files/", &OpenAiApi::NotSupported},
    {"", "/v1/fine_tuning/", &OpenAiApi::NotSupported},
};

OpenAiApi::OpenAiApi(const OpenAiApiOptions& options)
    : options_(options),
      builder_(*options.model),
      status_({.engine = options.engine,
               .model = options.model,
               .cluster = options.cluster,
               .requests = options.requests}) {}

// HEAD asks for what GET would say; an empty method stands for any.
const OpenAiApi::Route* OpenAiApi::FindRoute(const HttpRequest& request, std::string* allowed) {
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  for (const Route& route : kRoutes) {
    const std::string_view path = route.path;
    const bool is_match = path.size() > 1 && path.ends_with('/')
                              ? request.path.starts_with(path) && request.path.size() > path.size()
                              : request.path == path;
    if (!is_match) continue;
    if (*route.method == 0 || method == route.method) return &route;
    *allowed = route.method;
  }
  return nullptr;
}

absl::StatusOr<Caller> OpenAiApi::Authenticate(const HttpRequest& request) const {
  if (options_.access == nullptr) return Caller{};
  return options_.access->Authenticate(request.Header("authorization"));
}

absl::StatusOr<Quotas::Ticket> OpenAiApi::Admit(const Caller& caller) const {
  if (options_.access == nullptr) return Quotas::Ticket();
  return options_.access->Admit(caller);
}

HttpResponse OpenAiApi::ErrorResponse(int status, const std::string& message) {
  const auto trace = options_.requests->Begin({.endpoint = kNoRoute});
  trace->End(status);
  HttpResponse response = ErrorResponseOf(status, message);
  response.headers.push_back({"X-Request-Id", trace->id()});
  return response;
}

void OpenAiApi::Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  std::string allowed;
  const Route* route = FindRoute(request, &allowed);
  const auto trace = options_.requests->Begin({.endpoint = route == nullptr ? kNoRoute : route->path,
                                               .offered_id = request.Header("x-request-id")});
  auto traced = std::make_shared<TracedResponder>(std::move(responder), trace);
  if (route == nullptr && !allowed.empty()) {
    HttpResponse response = ErrorResponseOf(405, absl::StrCat(request.method, " is not allowed on ",
                                                              request.path, ", ", allowed, " is"));
    response.headers.push_back({"Allow", allowed});
    return traced->Respond(std::move(response));
  }
  if (route == nullptr) {
    return traced->Respond(ErrorResponseOf(404, "there is nothing at " + request.path));
  }
  absl::StatusOr<Caller> caller = Caller{};
  if (route->access == Route::Access::kKey) caller = Authenticate(request);
  if (!caller.ok()) return traced->Respond(ErrorResponseOf(caller.status()));
  trace->SetCaller(*caller);
  Call call{.request = std::move(request), .responder = traced, .trace = trace, .caller = *caller};
  const absl::Status status = (this->*route->answer)(call);
  if (!status.ok()) traced->Respond(ErrorResponseOf(status));
}

// ---- completions ----

absl::Status OpenAiApi::AddChoices(const CompletionFields& fields,
                                   const std::vector<int32_t>& prompt, const Call& call,
                                   std::vector<GenerationRequest>* requests) const {
  PL_ASSIGN_OR_RETURN(
      const int64_t max_tokens,
      builder_.FitMaxTokens(static_cast<int64_t>(prompt.size()), fields.max_tokens));
  for (int64_t i = 0; i < fields.n; ++i) {
    GenerationRequest request = fields.generation;
    request.id = absl::StrCat(call.trace->id(), "/", requests->size());
    request.prompt = prompt;
    request.max_tokens = max_tokens;
    request.deadline = call.arrival + fields.timeout;
    request.owner = OwnerOf(call.caller);
    // Of the choice alone, not of the prompt's place in the list: a batch answers as its prompts
    // alone would.
    request.sampling.seed += static_cast<uint64_t>(i);
    requests->push_back(std::move(request));
  }
  return absl::OkStatus();
}

GenerationCallOptions OpenAiApi::CallOptions(const Call& call, const CompletionFields& fields) {
  call.responder->AddHeader({"X-Plumbline-Seed", std::to_string(fields.generation.sampling.seed)});
  return {.engine = options_.engine,
          .responder = call.responder,
          .trace = call.trace,
          .model = options_.model->name,
          .choices_per_prompt = fields.n,
          .stream = fields.stream,
          .include_usage = fields.include_usage};
}

ResponseOptions OpenAiApi::FormatOptions(const CompletionFields& fields,
                                         const char* id_prefix) const {
  return {.id = RandomId(id_prefix),
          .created = absl::ToUnixSeconds(absl::Now()),
          .model = options_.model,
          .include_usage = fields.include_usage,
          .return_tokens_as_token_ids = fields.return_tokens_as_token_ids,
          .skip_special_tokens = fields.generation.skip_special_tokens};
}

absl::Status OpenAiApi::ChatCompletions(Call& call) {
  PL_ASSIGN_OR_RETURN(Quotas::Ticket ticket, Admit(call.caller));
  PL_ASSIGN_OR_RETURN(
      ChatCompletionRequest request,
      ParseChatCompletionRequest(call.request.body, options_.model->sampling_defaults));
  CompletionFields& fields = request.common;
  PL_RETURN_IF_ERROR(builder_.CheckModel(fields.model));
  PL_RETURN_IF_ERROR(builder_.CheckGeneration(fields.generation));
  PL_RETURN_IF_ERROR(builder_.CheckChoices(fields.n));
  if (!fields.has_seed) fields.generation.sampling.seed = RandomSeed();
  PL_ASSIGN_OR_RETURN(const std::vector<int32_t> prompt,
                      builder_.EncodeChat(ChatRequestOf(request.chat),
                                          {.add_special_tokens = fields.add_special_tokens}));
  GenerationCallOptions generation = CallOptions(call, fields);
  PL_RETURN_IF_ERROR(AddChoices(fields, prompt, call, &generation.requests));
  generation.prompt_tokens = static_cast<int64_t>(prompt.size());
  generation.format = MakeChatFormat(FormatOptions(fields, "chatcmpl-"));
  PL_RETURN_IF_ERROR(ticket.Reserve(generation.prompt_tokens));
  generation.ticket = std::move(ticket);
  StartGenerationCall(std::move(generation));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> OpenAiApi::EncodePrompt(const CompletionRequest& request,
                                                             const TextPrompt& prompt) const {
  if (request.suffix) {
    if (prompt.is_tokens) return InvalidField("suffix", "needs a prompt given as text");
    return builder_.EncodeInfill({.prefix = prompt.text, .suffix = *request.suffix});
  }
  if (prompt.is_tokens) {
    PL_RETURN_IF_ERROR(builder_.CheckTokens(prompt.tokens, "prompt"));
    return prompt.tokens;
  }
  return builder_.EncodeText(prompt.text, "prompt",
                             {.add_special_tokens = request.common.add_special_tokens});
}

absl::Status OpenAiApi::Completions(Call& call) {
  PL_ASSIGN_OR_RETURN(Quotas::Ticket ticket, Admit(call.caller));
  PL_ASSIGN_OR_RETURN(CompletionRequest request,
                      ParseCompletionRequest(call.request.body, options_.model->sampling_defaults));
  CompletionFields& fields = request.common;
  PL_RETURN_IF_ERROR(builder_.CheckModel(fields.model));
  PL_RETURN_IF_ERROR(builder_.CheckGeneration(fields.generation));
  PL_RETURN_IF_ERROR(builder_.CheckChoices(fields.n));
  if (request.prompts.size() * static_cast<size_t>(fields.n) > kMaxSequencesPerRequest) {
    return InvalidField("prompt",
                        absl::StrCat("prompts times n are more than ", kMaxSequencesPerRequest));
  }
  if (!fields.has_seed) fields.generation.sampling.seed = RandomSeed();
  GenerationCallOptions generation = CallOptions(call, fields);
  CompletionFormatOptions format = {.common = FormatOptions(fields, "cmpl-"),
                                    .num_choices_per_prompt = static_cast<int>(fields.n),
                                    .echo = request.echo,
                                    .num_top_logprobs = fields.generation.num_top_logprobs,
                                    .num_prompt_logprobs = request.num_prompt_logprobs};
  const DecodeOptions decode = {.skip_special_tokens = fields.generation.skip_special_tokens};
  for (const TextPrompt& prompt : request.prompts) {
    PL_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, EncodePrompt(request, prompt));
    if (tokens.empty()) return InvalidField("prompt", "has no tokens");
    PL_RETURN_IF_ERROR(AddChoices(fields, tokens, call, &generation.requests));
    generation.prompt_tokens += static_cast<int64_t>(tokens.size());
    if (request.echo) {
      std::string text =
          prompt.is_tokens ? options_.model->text->tokenizer->Decode(tokens, decode) : prompt.text;
      format.prompts.push_back({.text = std::move(text), .tokens = std::move(tokens)});
    }
  }
  generation.format = MakeCompletionFormat(std::move(format));
  PL_RETURN_IF_ERROR(ticket.Reserve(generation.prompt_tokens));
  generation.ticket = std::move(ticket);
  StartGenerationCall(std::move(generation));
  return absl::OkStatus();
}

// ---- models and tokens ----

ResponseJson OpenAiApi::ModelJson() const {
  const ServedModel& model = *options_.model;
  ResponseJson json;
  json["id"] = model.name;
  json["object"] = "model";
  json["created"] = model.created;
  json["owned_by"] = "plumbline";
  json["root"] = model.name;
  json["parent"] = nullptr;
  json["max_model_len"] = model.max_model_len;
  json["arithmetic"] = options_.cluster == nullptr ? "" : options_.cluster->Snapshot().arithmetic;
  json["numerics"] = model.numerics;
  json["fingerprint"] = model.fingerprint;
  return json;
}

absl::Status OpenAiApi::ListModels(Call& call) {
  ResponseJson json;
  json["object"] = "list";
  json["data"] = ResponseJson::array({ModelJson()});
  call.Answer(json);
  return absl::OkStatus();
}

absl::Status OpenAiApi::GetModel(Call& call) {
  PL_RETURN_IF_ERROR(builder_.CheckModel(call.request.path.substr(sizeof(kModelPath) - 1)));
  call.Answer(ModelJson());
  return absl::OkStatus();
}

absl::Status OpenAiApi::Tokenize(Call& call) {
  PL_ASSIGN_OR_RETURN(const TokenizeRequest request, ParseTokenizeRequest(call.request.body));
  PL_RETURN_IF_ERROR(builder_.CheckModel(request.model));
  const EncodeOptions encode = {.add_special_tokens = request.add_special_tokens};
  std::vector<int32_t> tokens;
  if (request.prompt) {
    PL_ASSIGN_OR_RETURN(tokens, builder_.EncodeText(*request.prompt, "prompt", encode));
  } else {
    PL_ASSIGN_OR_RETURN(tokens, builder_.EncodeChat(ChatRequestOf(request.chat), encode));
  }
  ResponseJson json;
  json["count"] = tokens.size();
  json["max_model_len"] = options_.model->max_model_len;
  json["tokens"] = tokens;
  if (request.return_token_strings) {
    ResponseJson strings = ResponseJson::array();
    for (const int32_t token : tokens) {
      strings.push_back(std::string(options_.model->text->tokenizer->TokenString(token)));
    }
    json["token_strs"] = std::move(strings);
  }
  call.Answer(json);
  return absl::OkStatus();
}

absl::Status OpenAiApi::Detokenize(Call& call) {
  PL_ASSIGN_OR_RETURN(const DetokenizeRequest request, ParseDetokenizeRequest(call.request.body));
  PL_RETURN_IF_ERROR(builder_.CheckModel(request.model));
  PL_RETURN_IF_ERROR(builder_.CheckTokens(request.tokens, "tokens"));
  ResponseJson json;
  json["prompt"] = options_.model->text->tokenizer->Decode(request.tokens);
  call.Answer(json);
  return absl::OkStatus();
}

absl::Status OpenAiApi::TokenizerInfo(Call& call) {
  const ModelText& text = *options_.model->text;
  const auto or_null = [](const std::optional<std::string>& token) {
    return token ? ResponseJson(*token) : ResponseJson();
  };
  ResponseJson json;
  json["tokenizer_class"] = "PreTrainedTokenizerFast";
  json["model"] = options_.model->name;
  json["vocab_size"] = text.tokenizer->vocab_size();
  json["model_max_length"] = options_.model->max_model_len;
  json["bos_token"] = or_null(text.tokens.bos_token);
  json["eos_token"] = or_null(text.tokens.eos_token);
  json["pad_token"] = or_null(text.tokens.pad_token);
  json["unk_token"] = or_null(text.tokens.unk_token);
  json["eos_token_ids"] = text.eos_ids;
  json["chat_template"] =
      text.chat_template ? ResponseJson(text.chat_template->source()) : ResponseJson();
  call.Answer(json);
  return absl::OkStatus();
}

// ---- operation ----

absl::Status OpenAiApi::Health(Call& call) {
  ResponseJson json = {{"status", "ok"}};
  if (options_.cluster != nullptr) {
    const ClusterSnapshot cluster = options_.cluster->Snapshot();
    json["faults"] = cluster.num_faults;
    if (cluster.last_fault) json["last_fault"] = ResponseJson(FaultJson(*cluster.last_fault));
  }
  call.Answer(json);
  return absl::OkStatus();
}

absl::Status OpenAiApi::Ready(Call& call) {
  PL_RETURN_IF_ERROR(Readiness(options_.engine->Stats()));
  call.Answer({{"status", "ready"}});
  return absl::OkStatus();
}

absl::Status OpenAiApi::Metrics(Call& call) {
  call.responder->Respond({.content_type = "text/plain; version=0.0.4; charset=utf-8",
                           .body = options_.requests->metrics().Serialize({.engine = options_.engine->Stats(),
                                                                           .access = options_.access,
                                                                           .cluster = options_.cluster})});
  return absl::OkStatus();
}

absl::Status OpenAiApi::Status(Call& call) {
  PL_ASSIGN_OR_RETURN(std::string body, status_.Json(call.request.query, call.caller));
  call.responder->Respond({.headers = {{"Cache-Control", "no-store"}, {"X-Content-Type-Options", "nosniff"}},
                           .body = std::move(body)});
  return absl::OkStatus();
}

absl::Status OpenAiApi::Page(Call& call) {
  const std::string_view path = call.request.path;
  const WebAsset* asset = FindWebAsset(path == "/" ? "index.html" : path.substr(sizeof(kAssetPath) - 1));
  if (asset == nullptr) return absl::NotFoundError("there is nothing at " + call.request.path);
  call.responder->Respond({.content_type = asset->content_type,
                           .headers = {{"Content-Security-Policy", kWebContentPolicy},
                                       {"X-Content-Type-Options", "nosniff"},
                                       {"Referrer-Policy", "no-referrer"},
                                       {"Cache-Control", "no-cache"}},
                           .body = std::string(asset->body)});
  return absl::OkStatus();
}

absl::Status OpenAiApi::NotSupported(Call& call) {
  return absl::UnimplementedError(
      absl::StrCat(call.request.path, " is not supported yet: this server does not fine-tune"));
}

}  // namespace plumbline
