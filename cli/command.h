// Commands of the `plumbline` binary. Each file adds one subcommand to the app and sets what runs when it is chosen.
#pragma once

#include <functional>

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace plumbline {

// Set by the chosen subcommand's callback; its failure is one line on stderr and exit code 1.
using CommandMain = std::function<absl::Status()>;

void AddServe(CLI::App& app, CommandMain& chosen);
void AddCoordinator(CLI::App& app, CommandMain& chosen);
void AddWorker(CLI::App& app, CommandMain& chosen);
void AddGenerate(CLI::App& app, CommandMain& chosen);
void AddLogits(CLI::App& app, CommandMain& chosen);
void AddScore(CLI::App& app, CommandMain& chosen);
void AddTokenize(CLI::App& app, CommandMain& chosen);
void AddKeys(CLI::App& app, CommandMain& chosen);
void AddBench(CLI::App& app, CommandMain& chosen);
void AddPlan(CLI::App& app, CommandMain& chosen);
void AddDoctor(CLI::App& app, CommandMain& chosen);

}  // namespace plumbline
