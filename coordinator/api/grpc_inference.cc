#include "coordinator/api/grpc_inference.h"

#include <grpcpp/grpcpp.h>

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "coordinator/api/grpc_access.h"
#include "coordinator/api/grpc_messages.h"
#include "coordinator/api/grpc_trace.h"
#include "coordinator/api/request_builder.h"
#include "coordinator/text/tokenizer.h"
#include "proto/inference.grpc.pb.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr size_t kMaxWaitingMessages = 4096;  // of one stream whose client does not read
constexpr int kNumSenderThreads = 2;

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  return absl::FromChrono(context.deadline());
}

// The engine says why; a code is needed in any case.
absl::Status FailureOf(const GenerationOutput& output) {
  if (!output.status.ok()) return output.status;
  return absl::UnavailableError("the request was cancelled by the server");
}

class ActiveCall {
 public:
  explicit ActiveCall(CallGate& gate) : gate_(gate) { ++gate_.num_active; }
  ~ActiveCall() { --gate_.num_active; }
  ActiveCall(const ActiveCall&) = delete;
  ActiveCall& operator=(const ActiveCall&) = delete;

 private:
  CallGate& gate_;
};

// What may go to the engine.
struct AdmittedCall {
  std::vector<GenerationRequest> requests;
  Quotas::Ticket ticket;
};

// One stream. Owns itself until OnDone; sinks of the engine may hold it a little longer.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(Engine* engine, CallGate& gate, boost::asio::thread_pool& senders,
               std::shared_ptr<RequestTrace> trace)
      : engine_(engine), active_(std::in_place, gate), senders_(senders), trace_(std::move(trace)) {}

  void Start(absl::StatusOr<AdmittedCall> call) {
    self_ = shared_from_this();
    if (!call.ok()) return End(call.status());
    std::vector<GenerationRequest> requests = std::move(call->requests);
    ticket_ = std::move(call->ticket);
    num_unfinished_ = requests.size();
    usage_.set_prompt_tokens(static_cast<int32_t>(requests.front().prompt.size()));
    for (size_t i = 0; i < requests.size(); ++i) {
      absl::StatusOr<uint64_t> handle = engine_->Submit(
          std::move(requests[i]), [self = shared_from_this(), i](GenerationOutput output) {
            self->OnOutput(static_cast<int>(i), std::move(output));
          });
      if (!handle.ok()) return Refuse(handle.status());
      const std::lock_guard lock(mutex_);
      handles_.push_back(*handle);
      if (is_ending_) break;  // cancelled meanwhile
    }
    CancelSequencesIfEnding();
  }

  void OnCancel() override { End(absl::CancelledError("cancelled by the client")); }

  void OnWriteDone(bool is_ok) override {
    {
      const std::lock_guard lock(mutex_);
      is_writing_ = false;
    }
    if (!is_ok) End(absl::CancelledError("the client is gone"));
    Pump();
  }

  void OnDone() override {
    active_.reset();
    self_.reset();
  }

 private:
  void Refuse(const absl::Status& status) {
    {
      const std::lock_guard lock(mutex_);
      ticket_.Refund();
    }
    End(status);
  }

  void OnOutput(int choice, GenerationOutput output) {  // on the engine thread
    const auto num_tokens = static_cast<int64_t>(output.tokens.size());
    const std::lock_guard lock(mutex_);
    ticket_.Charge(num_tokens);
    trace_->AddTokens(choice, num_tokens, absl::Now());
    if (is_ending_) return;
    if (output.finish == FinishReason::kError || output.finish == FinishReason::kCancelled ||
        output.finish == FinishReason::kTimeout) {  // what a deadline cuts short has its code
      return PostEnd(FailureOf(output));
    }
    if (waiting_.size() >= kMaxWaitingMessages) {
      return PostEnd(absl::ResourceExhaustedError("the client reads too slowly"));
    }
    waiting_.emplace_back(choice, std::move(output));
    boost::asio::post(senders_, [self = shared_from_this()] { self->Pump(); });
  }

  void PostEnd(absl::Status status) {  // with the lock held
    boost::asio::post(senders_, [self = shared_from_this(), status] { self->End(status); });
  }

  // Starts the next write, or ends the call. Called without the lock; never for two writes at a
  // time.
  void Pump() {
    std::optional<grpc::Status> end;
    {
      const std::lock_guard lock(mutex_);
      if (is_writing_ || is_finished_) return;
      if (is_ending_) {
        is_finished_ = true;
        end = ToGrpc(end_status_);
      } else if (!waiting_.empty()) {
        Fill(waiting_.front());
        waiting_.pop_front();
        is_writing_ = true;
      } else if (num_unfinished_ == 0) {
        is_ending_ = is_finished_ = true;
        end = grpc::Status::OK;
      } else {
        return;
      }
      if (end) ticket_.Release();  // before the client hears of the end
    }
    if (end) return Finish(EndTrace(*trace_, *end));
    StartWrite(&message_);
  }

  void Fill(std::pair<int, GenerationOutput>& next) {
    GenerationOutput& output = next.second;
    message_.Clear();
    message_.set_choice(next.first);
    message_.set_text(std::move(output.text));
    message_.mutable_token_ids()->Add(output.tokens.begin(), output.tokens.end());
    for (const TokenLogprob& logprob : output.logprobs) {
      plumbline::Fill(logprob, *message_.add_logprobs());
    }
    usage_.set_completion_tokens(usage_.completion_tokens() +
                                 static_cast<int32_t>(output.tokens.size()));
    if (output.finish == FinishReason::kNone) return;
    if (next.first == 0) {
      usage_.set_cached_tokens(static_cast<int32_t>(output.num_prompt_cached));
      trace_->AddCached(output.num_prompt_cached);
    }
    message_.set_finish_reason(output.finish == FinishReason::kLength ? "length" : "stop");
    if (--num_unfinished_ == 0) *message_.mutable_usage() = usage_;
  }

  // The first reason to end stands; the call is finished when no write is under way.
  void End(const absl::Status& status) {
    const std::shared_ptr<GenerateCall> alive = shared_from_this();
    {
      const std::lock_guard lock(mutex_);
      if (is_ending_) return;
      is_ending_ = true;
      end_status_ = status;
      waiting_.clear();
    }
    CancelSequencesIfEnding();
    Pump();
  }

  void CancelSequencesIfEnding() {
    std::vector<uint64_t> handles;
    {
      const std::lock_guard lock(mutex_);
      if (is_ending_) handles = handles_;
    }
    for (const uint64_t handle : handles) engine_->Cancel(handle);
  }

  Engine* const engine_;
  std::optional<ActiveCall> active_;  // until OnDone
  boost::asio::thread_pool& senders_;
  const std::shared_ptr<RequestTrace> trace_;
  std::shared_ptr<GenerateCall> self_;
  v1::GenerateResponse message_;  // being written
  v1::Usage usage_;

  std::mutex mutex_;
  std::deque<std::pair<int, GenerationOutput>> waiting_;
  std::vector<uint64_t> handles_;
  Quotas::Ticket ticket_;
  size_t num_unfinished_ = 0;
  bool is_writing_ = false;
  bool is_ending_ = false;    // no more is taken from the engine
  bool is_finished_ = false;  // Finish was called
  absl::Status end_status_;
};

class ScoreCall final : public grpc::ServerUnaryReactor,
                        public std::enable_shared_from_this<ScoreCall> {
 public:
  ScoreCall(Engine* engine, CallGate& gate, boost::asio::thread_pool& senders,
            v1::ScoreResponse* response, std::shared_ptr<RequestTrace> trace)
      : engine_(engine),
        active_(std::in_place, gate),
        senders_(senders),
        response_(response),
        trace_(std::move(trace)) {}

  void Start(absl::StatusOr<AdmittedCall> call) {
    self_ = shared_from_this();
    if (!call.ok()) return End(call.status());
    GenerationRequest& request = call->requests.front();
    ticket_ = std::move(call->ticket);
    response_->mutable_token_ids()->Assign(request.prompt.begin(), request.prompt.end());
    absl::StatusOr<uint64_t> handle =
        engine_->Submit(std::move(request), [self = shared_from_this()](GenerationOutput output) {
          self->OnOutput(std::move(output));
        });
    if (!handle.ok()) {
      ticket_.Refund();
      return End(handle.status());
    }
    bool is_cancelled = false;
    {
      const std::lock_guard lock(mutex_);
      handle_ = *handle;
      is_cancelled = is_finished_;
    }
    if (is_cancelled) engine_->Cancel(*handle);
  }

  void OnCancel() override {
    std::optional<uint64_t> handle;
    {
      const std::lock_guard lock(mutex_);
      handle = handle_;
    }
    End(absl::CancelledError("cancelled by the client"));
    if (handle) engine_->Cancel(*handle);
  }

  void OnDone() override {
    active_.reset();
    self_.reset();
  }

 private:
  void OnOutput(GenerationOutput output) {  // on the engine thread
    const std::lock_guard lock(mutex_);
    if (is_finished_) return;
    if (!output.prompt_logprobs.empty()) logprobs_ = std::move(output.prompt_logprobs);
    if (output.finish == FinishReason::kNone) return;
    const bool is_good =
        output.finish == FinishReason::kStop || output.finish == FinishReason::kLength;
    boost::asio::post(
        senders_, [self = shared_from_this(),
                   status = is_good ? absl::OkStatus() : FailureOf(output)] { self->End(status); });
  }

  void End(const absl::Status& status) {
    const std::shared_ptr<ScoreCall> alive = shared_from_this();
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(is_finished_, true)) return;
      ticket_.Release();  // before the client hears of the end
      for (const TokenLogprob& logprob : logprobs_) Fill(logprob, *response_->add_tokens());
    }
    Finish(EndTrace(*trace_, ToGrpc(status)));
  }

  Engine* const engine_;
  std::optional<ActiveCall> active_;  // until OnDone
  boost::asio::thread_pool& senders_;
  v1::ScoreResponse* const response_;  // ours until Finish
  const std::shared_ptr<RequestTrace> trace_;
  std::shared_ptr<ScoreCall> self_;
  std::mutex mutex_;
  std::optional<uint64_t> handle_;
  Quotas::Ticket ticket_;
  std::vector<TokenLogprob> logprobs_;
  bool is_finished_ = false;
};

class InferenceService final : public v1::Inference::CallbackService {
 public:
  explicit InferenceService(const InferenceServiceOptions& options)
      : options_(options), builder_(*options.model), senders_(kNumSenderThreads) {}
  ~InferenceService() override { senders_.join(); }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    const auto trace = BeginTrace(*options_.requests, *context, "Inference.Generate");
    const auto call = std::make_shared<GenerateCall>(options_.engine, *options_.gate, senders_, trace);
    call->Start(AdmitGenerate(*context, *trace, *request));
    return call.get();
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    const auto trace = BeginTrace(*options_.requests, *context, "Inference.Score");
    const auto call =
        std::make_shared<ScoreCall>(options_.engine, *options_.gate, senders_, response, trace);
    call->Start(AdmitScore(*context, *trace, *request));
    return call.get();
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return Answer(context, "Inference.Tokenize", [&]() -> absl::Status {
      PL_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, EncodeTokenize(builder_, *request));
      response->mutable_ids()->Assign(tokens.begin(), tokens.end());
      response->set_max_model_len(static_cast<int32_t>(options_.model->max_model_len));
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return Answer(context, "Inference.Detokenize", [&]() -> absl::Status {
      const std::vector<int32_t> ids(request->ids().begin(), request->ids().end());
      PL_RETURN_IF_ERROR(builder_.CheckTokens(ids, "ids"));
      response->set_text(options_.model->text->tokenizer->Decode(ids));
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Models(grpc::CallbackServerContext* context, const v1::ModelsRequest*,
                                   v1::ModelsResponse* response) override {
    return Answer(context, "Inference.Models", [&] {
      v1::ModelInfo& info = *response->add_models();
      info.set_id(options_.model->name);
      info.set_max_model_len(static_cast<int32_t>(options_.model->max_model_len));
      if (options_.cluster != nullptr) {
        info.set_arithmetic(options_.cluster->Snapshot().arithmetic);
      }
      info.set_fingerprint(options_.model->fingerprint);
      info.set_numerics(options_.model->numerics);
      return absl::OkStatus();
    });
  }

 private:
  absl::StatusOr<Caller> CallerOf(const grpc::CallbackServerContext& context, RequestTrace& trace) const {
    if (!options_.gate->is_open) return absl::UnavailableError("the server is stopping");
    absl::StatusOr<Caller> caller = Authenticate(options_.access, context);
    if (caller.ok()) trace.SetCaller(*caller);
    return caller;
  }

  template <typename Function>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const char* method,
                                   const Function& function) {
    const auto trace = BeginTrace(*options_.requests, *context, method);
    absl::Status status = CallerOf(*context, *trace).status();
    if (status.ok()) status = function();
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(EndTrace(*trace, ToGrpc(status)));
    return reactor;
  }

  // `build` gives the requests, which share a prompt.
  template <typename Build>
  absl::StatusOr<AdmittedCall> AdmitCall(grpc::CallbackServerContext& context, RequestTrace& trace,
                                         const Build& build) const {
    PL_ASSIGN_OR_RETURN(const Caller caller, CallerOf(context, trace));
    AdmittedCall call;
    PL_ASSIGN_OR_RETURN(call.ticket, Admit(options_.access, caller));
    PL_ASSIGN_OR_RETURN(call.requests, build());
    const auto prompt_tokens = static_cast<int64_t>(call.requests.front().prompt.size());
    PL_RETURN_IF_ERROR(call.ticket.Reserve(prompt_tokens));
    trace.BeginGeneration({.model = options_.model->name,
                           .prompt_tokens = prompt_tokens,
                           .num_choices = static_cast<int64_t>(call.requests.size())});
    for (GenerationRequest& request : call.requests) {
      request.deadline = DeadlineOf(context);
      request.owner = OwnerOf(caller);
    }
    return call;
  }

  absl::StatusOr<AdmittedCall> AdmitGenerate(grpc::CallbackServerContext& context, RequestTrace& trace,
                                             const v1::GenerateRequest& from) const {
    auto call = AdmitCall(context, trace, [&] { return BuildGenerate(builder_, from); });
    AddRetryAfter(call.status(), context);
    return call;
  }

  absl::StatusOr<AdmittedCall> AdmitScore(grpc::CallbackServerContext& context, RequestTrace& trace,
                                          const v1::ScoreRequest& from) const {
    using Requests = std::vector<GenerationRequest>;
    auto call = AdmitCall(context, trace, [&]() -> absl::StatusOr<Requests> {
      PL_ASSIGN_OR_RETURN(GenerationRequest request, BuildScore(builder_, from));
      Requests requests;
      requests.push_back(std::move(request));
      return requests;
    });
    AddRetryAfter(call.status(), context);
    return call;
  }

  const InferenceServiceOptions options_;
  const RequestBuilder builder_;
  boost::asio::thread_pool senders_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(const InferenceServiceOptions& options) {
  return std::make_unique<InferenceService>(options);
}

}  // namespace plumbline
