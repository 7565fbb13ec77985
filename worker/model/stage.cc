#include "worker/model/stage.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {

static_assert(kGridTokens == kBlockTokens && kGridTokens == kChunkTokens, "the scheduler's grid is the ops' grid");

absl::StatusOr<std::unique_ptr<Stage>> Stage::Load(Options options, Backend backend, WeightSource& source) {
  if (options.limits.max_step_tokens < kChunkTokens) {
    return absl::InvalidArgumentError(absl::StrCat("max step tokens is ", options.limits.max_step_tokens,
                                                   "; at least ", kChunkTokens, " are needed"));
  }
  PL_ASSIGN_OR_RETURN(ShardPlan plan, ShardPlan::Make(options.config, options.mesh));
  auto stage = std::unique_ptr<Stage>(new Stage(std::move(options), std::move(plan), std::move(backend)));
  stage->OpenCache(source);
  absl::Status status = stage->LoadWeights(source);
  if (absl::IsDataLoss(status)) {
    stage->cached_weights_->Discard(status);
    status = stage->LoadWeights(source);
  }
  PL_RETURN_IF_ERROR(status);
  PL_RETURN_IF_ERROR(stage->LayOut());
  return stage;
}

Stage::Stage(Options options, ShardPlan plan, Backend backend)
    : options_(std::move(options)),
      plan_(std::move(plan)),
      backend_(std::move(backend)),
      stage_index_(options_.mesh.StageOf(options_.rank)),
      layer_range_(plan_.LayersOf(stage_index_)) {}

void Stage::OpenCache(const WeightSource& source) {
  const std::optional<CheckpointIdentity> checkpoint = source.Identity();
  const std::string layout(backend_.ops->packed_layout());
  if (options_.cache_dir.empty() || !checkpoint || layout.empty()) return;
  const Mesh& mesh = options_.mesh;
  cached_weights_ = std::make_unique<WeightCache>(WeightCache::Options{
      .folder = options_.cache_dir,
      .checkpoint = *checkpoint,
      .layout = layout,
      .share = absl::StrCat("model ", options_.config.Fingerprint(), " act ", NameOf(options_.compute_dtype),
                            " tp ", mesh.tp, " pp ", mesh.pp, " rank ", options_.rank),
      .on_line = options_.on_line});
}

absl::Status Stage::LoadWeights(WeightSource& source) {
  const ModelConfig& config = options_.config;
  const DType act = options_.compute_dtype;
  Device& device = *backend_.device;
  WeightLoader loader({.device = &device,
                       .ops = backend_.ops.get(),
                       .source = &source,
                       .cache = cached_weights_.get(),
                       .plan = &plan_,
                       .rank = options_.rank,
                       .act = act,
                       .on_progress = [this](int64_t bytes_done) {
                         weight_bytes_ = bytes_done;
                         if (options_.on_progress) options_.on_progress(bytes_done);
                       }});
  layers_.clear();
  if (stage_index_ == 0) {
    PL_ASSIGN_OR_RETURN(embedding_, loader.EmbeddingTable("model.embed_tokens.weight"));
  }
  for (int64_t layer = layer_range_.first; layer < layer_range_.last; ++layer) {
    PL_ASSIGN_OR_RETURN(DecoderLayer loaded, DecoderLayer::Load(config, plan_, layer, loader));
    layers_.push_back(std::move(loaded));
  }
  if (stage_index_ == options_.mesh.pp - 1) {
    PL_ASSIGN_OR_RETURN(Head head, Head::Load(config, plan_, device, act, loader));
    head_ = std::make_unique<Head>(std::move(head));
  }
  if (cached_weights_ != nullptr && cached_weights_->is_mapped()) {
    cached_weights_->LogUse();
  } else if (cached_weights_ != nullptr) {
    cached_weights_->Save(loader.packed(), [&] {
      if (options_.on_progress) options_.on_progress(weight_bytes_);
    });
  }
  return absl::OkStatus();
}

absl::Status Stage::LayOut() {
  const ModelConfig& config = options_.config;
  const DType act = options_.compute_dtype;
  Device& device = *backend_.device;
  PL_ASSIGN_OR_RETURN(cache_, SequenceCache::Make(device, config, plan_, stage_index_, options_.limits, act));
  const int64_t rows = options_.limits.max_step_tokens;
  limits_ = {.max_step_tokens = rows,
             .max_sequences = options_.limits.max_sequences,
             .num_blocks = cache_.num_blocks(),
             .num_state_slots = cache_.num_slots(),
             .max_positions = config.max_positions,
             .vocab = config.vocab};
  batches_ = std::make_unique<BatchBuilder>(device, limits_, config.rope.rotary_dim);
  const int64_t half = static_cast<int64_t>(config.rope.inv_freq.size());
  inv_freq_ = device.Allocate(std::max<int64_t>(half * 4, 4));
  if (half > 0) device.Upload(inv_freq_.View(DType::kF32, {half}), config.rope.inv_freq.data());
  PL_ASSIGN_OR_RETURN(residual_, ResidualStream::Make(device, rows, config.hidden, act, options_.mesh.tp));
  Buffer scratch = device.Allocate(DecoderLayer::ScratchBytes(config, plan_, rows, act));
  if (scratch.data() == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for the activations of ", rows, " tokens"));
  }
  scratch_ = Scratch(std::move(scratch));
  return absl::OkStatus();
}

void Stage::Connect(StageLinks links) {
  links_ = links;
  residual_.Connect(*backend_.device, *backend_.ops, *links.tp, options_.gather_bytes);
}

// Embeds on the first stage; takes over the residual stream from the stage before on the others.
absl::Status Stage::Begin(const Batch& batch) {
  residual_.Begin(batch.all.count);
  if (stage_index_ > 0) return links_.pp->Recv(residual_.own(), stage_index_ - 1);
  backend_.ops->Embed({.out = residual_.Contribution(),
                       .tokens = batch.tokens,
                       .table = embedding_.rows,
                       .vocab_begin = embedding_.first_row});
  return residual_.Exchange();
}

void Stage::FillRopeTable(const BatchRows& rows) {
  const int64_t half = static_cast<int64_t>(options_.config.rope.inv_freq.size());
  if (half == 0) return;
  backend_.ops->RopeTable({.cos = rows.cos,
                           .sin = rows.sin,
                           .positions = rows.positions,
                           .inv_freq = inv_freq_.View(DType::kF32, {half}),
                           .attention_factor = options_.config.rope.attention_factor});
}

absl::StatusOr<StepResult> Stage::Forward(const StepPlan& plan) {
  PL_RETURN_IF_ERROR(CheckPlan(plan, limits_));
  const Context context = {.device = backend_.device.get(),
                           .ops = backend_.ops.get(),
                           .act = options_.compute_dtype};
  const Batch batch = batches_->Build(plan);
  FillRopeTable(batch.all);
  if (head_ != nullptr && batch.wanted.count < batch.all.count) FillRopeTable(batch.wanted);
  for (const SequencePlan& sequence : plan.sequences) {
    if (sequence.load_slot >= 0) cache_.CopyState(*context.device, sequence.load_slot, sequence.state_slot);
  }
  PL_RETURN_IF_ERROR(Begin(batch));
  for (const DecoderLayer& layer : layers_) {
    PL_RETURN_IF_ERROR(layer.Forward(context, batch, cache_, residual_, scratch_));
  }
  for (const SequencePlan& sequence : plan.sequences) {
    if (sequence.save_slot >= 0) cache_.CopyState(*context.device, sequence.state_slot, sequence.save_slot);
  }
  residual_.Add();
  StepResult result = {.epoch = plan.epoch, .step = plan.step};
  if (head_ == nullptr) {
    PL_RETURN_IF_ERROR(links_.pp->Send(residual_.own(), stage_index_ + 1));
    return result;
  }
  PL_ASSIGN_OR_RETURN(result.sequences, head_->Forward(context, *links_.tp, plan, residual_.own()));
  return result;
}

int64_t StageActivationBytes(const ModelConfig& config, const ShardPlan& plan, int stage,
                             const CacheLimits& limits, DType act) {
  const int64_t rows = limits.max_step_tokens;
  int64_t bytes = ResidualStream::Bytes(rows, config.hidden, act, plan.mesh().tp);
  bytes += DecoderLayer::ScratchBytes(config, plan, rows, act);
  if (stage == plan.mesh().pp - 1) bytes += Head::BufferBytes(config, plan, act);
  return bytes;
}

}  // namespace plumbline
