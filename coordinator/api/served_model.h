// ServedModel: what the API knows of the model behind it.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/engine/engine.h"
#include "coordinator/text/model_text.h"

namespace plumbline {

struct ServedModel {
  std::string name;
  const ModelText* text = nullptr;  // outlives the API
  int64_t max_model_len = 0;        // prompt + generated, in tokens
  int32_t vocab_size = 0;           // of the model's head; ids in [0, vocab_size) may be prompted
  std::string fingerprint;          // of the configuration
  std::string numerics = "exact";
  int64_t created = 0;               // Unix seconds
  SamplingParams sampling_defaults;  // where a request does not say
};

}  // namespace plumbline
