#include "coordinator/cluster/coordinator_messages.h"

#include <utility>

#include "proto/cluster.pb.h"

namespace plumbline {

CoordinatorMessagePtr ConfigureMessage(const ClusterOptions& options, const EpochStart& start) {
  auto message = std::make_shared<v1::CoordinatorMessage>();
  v1::Configure& configure = *message->mutable_configure();
  configure.set_epoch(start.epoch);
  configure.set_rank(start.rank);
  configure.set_tp(options.mesh.tp);
  configure.set_pp(options.mesh.pp);
  configure.set_model_dir(options.model_dir);
  configure.set_config_json(options.config_json);
  configure.set_num_layers(options.num_layers);
  if (options.random_seed) configure.set_random_seed(*options.random_seed);
  configure.set_arithmetic(start.arithmetic);
  configure.set_compute_dtype(options.compute_f32 ? "f32" : "auto");
  configure.set_max_tokens(options.limits.max_tokens);
  configure.set_max_sequences(options.limits.max_sequences);
  configure.set_max_step_tokens(options.limits.max_step_tokens);
  configure.set_max_cached_states(options.limits.max_cached_states);
  configure.set_num_threads(options.num_threads);
  // A collective gives up a little before the step does: it knows which peer is late.
  configure.set_step_timeout_ms(absl::ToInt64Milliseconds(options.step_timeout * 9 / 10));
  configure.set_fingerprint(start.fingerprint);
  configure.set_transport(options.transport);
  return message;
}

CoordinatorMessagePtr ConnectMessage(uint64_t epoch) {
  auto message = std::make_shared<v1::CoordinatorMessage>();
  message->mutable_connect()->set_epoch(epoch);
  return message;
}

CoordinatorMessagePtr StepPlanMessage(std::string encoded_plan) {
  auto message = std::make_shared<v1::CoordinatorMessage>();
  message->set_step_plan(std::move(encoded_plan));
  return message;
}

CoordinatorMessagePtr AbortMessage(uint64_t epoch, std::string reason) {
  auto message = std::make_shared<v1::CoordinatorMessage>();
  message->mutable_abort()->set_epoch(epoch);
  message->mutable_abort()->set_reason(std::move(reason));
  return message;
}

CoordinatorMessagePtr ShutdownMessage(std::string reason) {
  auto message = std::make_shared<v1::CoordinatorMessage>();
  message->mutable_shutdown()->set_reason(std::move(reason));
  return message;
}

}  // namespace plumbline
