// Rotary frequencies from a configuration: the scaling recipes of transformers'
// modeling_rope_utils, evaluated in f64.
#pragma once

#include <cstdint>

#include "parallel/json_reader.h"
#include "parallel/model_config.h"

namespace plumbline {

struct RopeInputs {
  int64_t head_dim = 0;
  int64_t max_positions = 0;       // max_position_embeddings
  double default_theta = 10000;    // where the file names none
  double default_rotary_part = 1;  // rotated part of a head where the file names none
};

struct RopeAndPositions {
  RopeConfig rope;
  int64_t max_positions = 0;  // YaRN stretches it
};

// text: the object with rope_parameters (transformers 5) or rope_theta and rope_scaling
// (transformers 4). Problems go to the reader's Status; what comes back then is not to be used.
// REQUIRES: head_dim >= 2.
RopeAndPositions ReadRope(const JsonReader& text, const RopeInputs& inputs);

}  // namespace plumbline
