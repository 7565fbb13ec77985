// A communicator that tells how far its rank has come.
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/rank_progress.h"

namespace plumbline {

// Every call of `inner`, with its beginning and end in `record`, which outlives the result.
std::unique_ptr<Communicator> MakeCountingCommunicator(std::unique_ptr<Communicator> inner, ProgressRecord* record);

}  // namespace plumbline
