// plumbline: one binary for every role. Exit codes: 0 done, 1 failed with one line on stderr, 2 wrong usage.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <string>

#include "cli/command.h"

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app("Plumbline: serves 16-bit language models over a cluster, with the same bits at any shape.");
  app.name("plumbline");
  app.require_subcommand(1);
  app.set_version_flag("--version", "plumbline 0.1.0");
  plumbline::CommandMain chosen;
  plumbline::AddServe(app, chosen);
  plumbline::AddCoordinator(app, chosen);
  plumbline::AddWorker(app, chosen);
  plumbline::AddGenerate(app, chosen);
  plumbline::AddLogits(app, chosen);
  plumbline::AddScore(app, chosen);
  plumbline::AddTokenize(app, chosen);
  plumbline::AddKeys(app, chosen);
  plumbline::AddBench(app, chosen);
  plumbline::AddPlan(app, chosen);
  plumbline::AddDoctor(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const absl::Status status = chosen();
  if (status.ok()) return 0;
  std::fprintf(stderr, "plumbline: %s\n", std::string(status.message()).c_str());
  return 1;
}
