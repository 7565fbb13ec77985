#include "worker/exactness.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int64_t kStepTokens = 1024;

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t HashBytes(const char* bytes, size_t size) {  // FNV-1a
  uint64_t hash = 0xCBF29CE484222325u;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<uint8_t>(bytes[i])) * 0x100000001B3u;
  return hash;
}

struct Script {
  std::vector<int32_t> tokens;
  int64_t prompt_tokens = 0;
};

// Sequence 0 has the full length; the others are of all lengths.
Script MakeScript(const ExactnessOptions& options, int index) {
  Script script;
  script.prompt_tokens = index == 0 ? options.prompt_tokens : 1 + (index * 37) % options.prompt_tokens;
  const int64_t length = script.prompt_tokens + options.generated_tokens;
  for (int64_t i = 0; i < length; ++i) {
    const uint64_t number = Mix(options.seed + Mix(static_cast<uint64_t>(index) << 32 | i));
    script.tokens.push_back(static_cast<int32_t>(number % options.ranks.config.vocab));
  }
  return script;
}

struct RunningScript {
  const Script* script = nullptr;
  int64_t position = 0;
  int64_t replay_until = 0;  // tokens whose results were seen before a preemption
  bool was_preempted = false;
  int64_t resume_at_step = 0;
  int64_t prefix_hit = 0;
  std::vector<int32_t> blocks;
  int32_t slot = -1;
  int32_t saved_slot = -1;  // holds the state behind prefix_hit
  bool load_saved = false;  // the next step begins with it
  std::vector<uint64_t> hashes;  // by position
};

// Drives the scripts through the ranks the way a scheduler would, with the batch shape of one run.
class Driver {
 public:
  Driver(LocalRanks& ranks, const ExactnessRun& run, int64_t vocab) : ranks_(ranks), run_(run), vocab_(vocab) {
    // Blocks and slots are handed out from the end of these lists: never in the order of positions.
    for (int64_t b = 0; b < ranks.num_blocks(); ++b) free_blocks_.push_back(static_cast<int32_t>(b));
    for (int64_t s = 0; s < ranks.num_state_slots(); ++s) free_slots_.push_back(static_cast<int32_t>(s));
  }

  // Hashes of every sequence's logits by position; a position that was computed twice with different bits gets 0.
  absl::StatusOr<std::vector<std::vector<uint64_t>>> Run(const std::vector<Script>& scripts) {
    for (const Script& script : scripts) {
      running_.push_back(
          {.script = &script,
           .prefix_hit = std::min(run_.prefix_hit, (script.prompt_tokens - 1) / kChunkTokens * kChunkTokens),
           .hashes = std::vector<uint64_t>(script.tokens.size())});
    }
    for (int64_t step = 0; !Finished(); ++step) {
      if (run_.preempted) Preempt(step);
      StepPlan plan = {.epoch = 1, .step = static_cast<uint64_t>(step), .sequences = {}};
      std::vector<size_t> planned;
      int64_t budget = kStepTokens;
      for (size_t s = 0; s < running_.size(); ++s) {
        const int64_t count = std::min(NextCount(running_[s], step, s), GridCut(running_[s], budget));
        if (count <= 0) continue;
        plan.sequences.push_back(PlanOf(running_[s], s, count));
        planned.push_back(s);
        budget -= count;
      }
      if (plan.sequences.empty()) continue;
      PL_ASSIGN_OR_RETURN(StepResult result, ranks_.Run(std::move(plan)));
      for (size_t i = 0; i < planned.size(); ++i) {
        RunningScript& sequence = running_[planned[i]];
        Record(sequence, result.sequences[i].logits);
        if (sequence.prefix_hit > 0 && sequence.position == sequence.prefix_hit) TakeOver(sequence, step + 3);
      }
    }
    std::vector<std::vector<uint64_t>> hashes;
    for (RunningScript& sequence : running_) hashes.push_back(std::move(sequence.hashes));
    return hashes;
  }

 private:
  bool Finished() const {
    return std::all_of(running_.begin(), running_.end(), [](const RunningScript& sequence) {
      return sequence.position == static_cast<int64_t>(sequence.script->tokens.size());
    });
  }

  // A third of the sequences lose their cache once, in the middle of their generated tokens, and come back later.
  void Preempt(int64_t step) {
    for (size_t s = 0; s < running_.size(); s += 3) {
      RunningScript& sequence = running_[s];
      const int64_t length = static_cast<int64_t>(sequence.script->tokens.size());
      if (sequence.was_preempted || sequence.position <= sequence.script->prompt_tokens + 2 ||
          sequence.position == length) {
        continue;
      }
      sequence.was_preempted = true;
      sequence.replay_until = sequence.position;
      TakeOver(sequence, step + 2);
    }
  }

  // Goes on behind the cached prefix, or from the start: with its blocks, and a copy of the state behind it in a slot that
  // others may have used meanwhile.
  void TakeOver(RunningScript& sequence, int64_t resume_at_step) {
    sequence.position = sequence.prefix_hit;
    sequence.resume_at_step = resume_at_step;
    FreeBlocks(sequence, sequence.prefix_hit / kBlockTokens);
    FreeSlot(sequence.slot);
    sequence.load_saved = sequence.saved_slot >= 0;
  }

  void FreeBlocks(RunningScript& sequence, int64_t num_kept) {
    free_blocks_.insert(free_blocks_.begin(), sequence.blocks.begin() + num_kept, sequence.blocks.end());
    sequence.blocks.resize(num_kept);
  }

  void FreeSlot(int32_t& slot) {
    if (slot >= 0) free_slots_.insert(free_slots_.begin(), slot);
    slot = -1;
  }

  int32_t TakeSlot() {
    if (ranks_.num_state_slots() == 0) return -1;
    PL_CHECK(!free_slots_.empty());
    const int32_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }

  // Tokens this sequence would like in this step: a chunk of its prompt, all generated tokens of a replay, or one.
  int64_t NextCount(const RunningScript& sequence, int64_t step, size_t index) const {
    const int64_t length = static_cast<int64_t>(sequence.script->tokens.size());
    if (step < sequence.resume_at_step || step < static_cast<int64_t>(index % 3) || sequence.position == length) return 0;
    const int64_t prompt = sequence.script->prompt_tokens;
    if (sequence.position < prompt) {
      const int64_t left = (sequence.position < sequence.prefix_hit ? sequence.prefix_hit : prompt) - sequence.position;
      return run_.chunk == 0 ? left : std::min(left, run_.chunk);
    }
    return std::max<int64_t>(1, sequence.replay_until - sequence.position);
  }

  static int64_t GridCut(const RunningScript& sequence, int64_t budget) {
    const int64_t left = sequence.script->prompt_tokens - sequence.position;
    return left <= budget ? budget : budget / kChunkTokens * kChunkTokens;
  }

  SequencePlan PlanOf(RunningScript& sequence, size_t index, int64_t count) {
    const int64_t end = sequence.position + count;
    while (static_cast<int64_t>(sequence.blocks.size()) * kBlockTokens < end) {
      PL_CHECK(!free_blocks_.empty());
      sequence.blocks.push_back(free_blocks_.back());
      free_blocks_.pop_back();
    }
    if (sequence.slot < 0) sequence.slot = TakeSlot();
    if (end == sequence.prefix_hit) sequence.saved_slot = TakeSlot();
    const auto first = sequence.script->tokens.begin() + sequence.position;
    const int64_t prompt_left = std::max<int64_t>(0, sequence.script->prompt_tokens - sequence.position);
    return {.sequence_id = index,
            .tokens = {first, first + count},
            .start = static_cast<int32_t>(sequence.position),
            .num_prompt_tokens = static_cast<int32_t>(std::min(count, prompt_left)),
            .block_table = sequence.blocks,
            .state_slot = sequence.slot,
            .load_slot = std::exchange(sequence.load_saved, false) ? sequence.saved_slot : -1,
            .save_slot = end == sequence.prefix_hit ? sequence.saved_slot : -1,
            .draw = {},
            .targets = {},
            .return_logits = true};
  }

  void Record(RunningScript& sequence, const std::string& logits) {
    const size_t row_bytes = static_cast<size_t>(vocab_) * sizeof(float);
    for (size_t at = 0; at < logits.size(); at += row_bytes) {
      const uint64_t hash = HashBytes(logits.data() + at, row_bytes);
      uint64_t& known = sequence.hashes[sequence.position];
      known = sequence.position < sequence.replay_until && known != hash ? 0 : hash;
      ++sequence.position;
    }
    if (sequence.position == static_cast<int64_t>(sequence.script->tokens.size())) {
      FreeBlocks(sequence, 0);
      FreeSlot(sequence.slot);
      FreeSlot(sequence.saved_slot);
    }
  }

  LocalRanks& ranks_;
  const ExactnessRun& run_;
  int64_t vocab_;
  std::vector<RunningScript> running_;
  std::vector<int32_t> free_blocks_, free_slots_;
};

class Matrix {
 public:
  explicit Matrix(const ExactnessOptions& options) : options_(options) {
    const int largest = *std::max_element(options.batches.begin(), options.batches.end());
    for (int i = 0; i < largest; ++i) scripts_.push_back(MakeScript(options, i));
  }

  absl::Status Baseline() {
    PL_ASSIGN_OR_RETURN(auto ranks, Start({}, LocalRanks::Options::Transport::kThreads));
    const ExactnessRun alone = {};
    for (const Script& script : scripts_) {
      PL_ASSIGN_OR_RETURN(auto hashes, Driver(*ranks, alone, options_.ranks.config.vocab).Run({script}));
      baseline_.push_back(std::move(hashes[0]));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<LocalRanks>> Start(Mesh mesh, LocalRanks::Options::Transport transport) const {
    LocalRanks::Options ranks = options_.ranks;
    ranks.mesh = mesh;
    ranks.transport = transport;
    const int64_t blocks = (options_.prompt_tokens + options_.generated_tokens) / kBlockTokens + 1;
    const int64_t sequences = static_cast<int64_t>(scripts_.size());
    ranks.limits = {.max_tokens = blocks * kBlockTokens * sequences,
                    .max_sequences = sequences,
                    .max_step_tokens = kStepTokens,
                    .max_cached_states = sequences + 1};  // one more, so that a slot given back is not the next one taken
    return LocalRanks::Start(std::move(ranks));
  }

  absl::Status Compare(LocalRanks& ranks, ExactnessRun& run) const {
    const std::vector<Script> scripts(scripts_.begin(), scripts_.begin() + run.batch);
    PL_ASSIGN_OR_RETURN(auto hashes, Driver(ranks, run, options_.ranks.config.vocab).Run(scripts));
    for (int s = 0; s < run.batch; ++s) {
      for (size_t position = 0; position < hashes[s].size(); ++position) {
        ++run.tokens;
        if (hashes[s][position] == baseline_[s][position]) continue;
        if (run.differing_tokens++ == 0) {
          run.first_difference = absl::StrCat("sequence ", s, ", position ", position);
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  const ExactnessOptions& options_;
  std::vector<Script> scripts_;
  std::vector<std::vector<uint64_t>> baseline_;
};

}  // namespace

absl::StatusOr<std::vector<ExactnessRun>> RunExactnessMatrix(
    const ExactnessOptions& options, const std::function<void(const ExactnessRun&)>& on_run) {
  Matrix matrix(options);
  PL_RETURN_IF_ERROR(matrix.Baseline());
  std::vector<ExactnessRun> runs;
  for (const auto transport : options.transports) {
    for (const Mesh mesh : options.meshes) {
      PL_ASSIGN_OR_RETURN(auto ranks, matrix.Start(mesh, transport));
      for (const int batch : options.batches) {
        for (const int64_t chunk : options.chunks) {
          for (const int64_t prefix_hit : options.prefix_hits) {
            for (const bool preempted : {false, true}) {
              ExactnessRun run = {mesh, transport, batch, chunk, prefix_hit, preempted, 0, 0, ""};
              PL_RETURN_IF_ERROR(matrix.Compare(*ranks, run));
              if (on_run) on_run(run);
              runs.push_back(std::move(run));
            }
          }
        }
      }
    }
  }
  return runs;
}

}  // namespace plumbline
