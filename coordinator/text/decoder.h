// Decoder: the "decoder" of a tokenizer.json, a chain of stages that turns token strings into text,
// as a stream: text leaves as soon as no later token can change it. One implementation serves whole
// texts and streaming.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline {

class Decoder {
 public:
  // What a stream has seen so far, one entry per stage.
  struct StageState {
    std::string pending;   // held back
    bool started = false;  // a piece has passed
    int num_stripped = 0;
  };
  using State = std::vector<StageState>;

  // `json` is the value of "decoder", null for none (tokens are then joined by spaces).
  static absl::StatusOr<Decoder> Parse(const nlohmann::json& json);

  State NewState() const { return State(stages_.size()); }
  // Appends to `out` the text that is now certain.
  void Push(std::string_view token, State& state, std::string& out) const;
  void Finish(State& state, std::string& out) const;

  // Bytes that `token` stands for in the middle of a text.
  std::string BytesOf(std::string_view token) const;

 private:
  enum class Kind {
    kReplace,
    kByteFallback,
    kFuse,
    kStrip,
    kMetaspace,
    kByteLevel,
    kJoinWithSpaces
  };
  struct Stage {
    Kind kind;
    bool fused = false;       // input is one text in pieces, not separate tokens
    std::string pattern;      // kReplace, kMetaspace; kStrip: the character
    std::string content;      // kReplace
    int start = 0;            // kStrip
    int stop = 0;             // kStrip
    bool drop_first = false;  // kMetaspace: the first token loses its marks
  };

  absl::Status AddStages(const nlohmann::json& json);
  void Feed(size_t stage_index, std::string_view piece, State& state, std::string& out) const;
  void Flush(size_t stage_index, State& state, std::string& out) const;

  std::vector<Stage> stages_;
};

}  // namespace plumbline
