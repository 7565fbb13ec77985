// plumbline logits: f32 logits of every position of given token sequences, for audits and tests.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/model_session.h"
#include "cli/runner_factory.h"
#include "proto/status.h"
#include "worker/safetensors.h"
#include "worker/sha256.h"

namespace plumbline {
namespace {

struct LogitsFlags {
  ModelFlags model;
  std::string tokens, out;
  std::string transport = "threads";
  int64_t chunk = 0;
};

struct TokenSequence {
  std::string number;  // i of "tokens.i"
  std::vector<int32_t> tokens;
};

absl::StatusOr<std::vector<TokenSequence>> ReadTokens(const std::string& path) {
  PL_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(path));
  std::vector<TokenSequence> sequences;
  for (const SafetensorsEntry& entry : file->entries()) {
    if (entry.name.rfind("tokens.", 0) != 0) continue;
    if (entry.dtype != "I32" || entry.shape.size() != 1 || entry.shape[0] == 0) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", entry.name, " must be I32 [T] with T >= 1"));
    }
    const auto* ids = reinterpret_cast<const int32_t*>(file->Data(entry));
    sequences.push_back({entry.name.substr(7), {ids, ids + entry.shape[0]}});
  }
  if (sequences.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no tensor named tokens.0, tokens.1, ..."));
  }
  std::sort(sequences.begin(), sequences.end(), [](const TokenSequence& a, const TokenSequence& b) {
    return a.number.size() != b.number.size() ? a.number.size() < b.number.size() : a.number < b.number;
  });
  return sequences;
}

absl::Status RunLogits(LogitsFlags flags) {
  PL_ASSIGN_OR_RETURN(std::vector<TokenSequence> sequences, ReadTokens(flags.tokens));
  if (flags.chunk > 0) flags.model.limits.max_step_tokens = flags.chunk;
  int64_t longest = 0;
  for (const TokenSequence& sequence : sequences) longest = std::max<int64_t>(longest, sequence.tokens.size());
  if (flags.model.limits.max_tokens == 0) flags.model.limits.max_tokens = (longest + 63) / 64 * 64;
  if (flags.model.limits.max_sequences == 0) flags.model.limits.max_sequences = 1;
  PL_ASSIGN_OR_RETURN(auto session, ModelSession::Open(flags.model, TextNeed::kNone, flags.transport));
  const int64_t vocab = session->model().config.vocab;
  std::unique_ptr<SafetensorsWriter> writer;
  if (!flags.out.empty()) {
    std::vector<SafetensorsTensor> tensors;
    for (const TokenSequence& sequence : sequences) {
      tensors.push_back({.name = absl::StrCat("logits.", sequence.number),
                         .dtype = DType::kF32,
                         .shape = {static_cast<int64_t>(sequence.tokens.size()), vocab}});
    }
    PL_ASSIGN_OR_RETURN(writer, SafetensorsWriter::Create(flags.out, tensors));
  }
  Sha256 all;
  for (const TokenSequence& sequence : sequences) {
    GenerationRequest request;
    request.id = absl::StrCat("tokens.", sequence.number);
    request.prompt = sequence.tokens;
    request.return_logits = true;
    absl::StatusOr<GenerationOutput> output = session->Run(std::move(request));
    if (!output.ok()) {
      return absl::Status(output.status().code(), absl::StrCat("tokens.", sequence.number, ": ", output.status().message()));
    }
    if (writer != nullptr) PL_RETURN_IF_ERROR(writer->Append(output->logits.data(), output->logits.size()));
    Sha256 one;
    one.Update(output->logits);
    all.Update(output->logits);
    std::printf("%s  logits.%s [%zu, %lld]\n", one.HexDigest().c_str(), sequence.number.c_str(), sequence.tokens.size(),
                static_cast<long long>(vocab));
  }
  std::printf("%s  all\n", all.HexDigest().c_str());
  return writer == nullptr ? absl::OkStatus() : writer->Finish();
}

}  // namespace

void AddLogits(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<LogitsFlags>();
  CLI::App* command = app.add_subcommand("logits", "f32 logits of every position of given token sequences");
  AddModelSource(*command, flags->model);
  AddRunFlags(*command, flags->model);
  command->add_option("--tokens", flags->tokens, "safetensors file with int32 tensors tokens.0, tokens.1, ...")->required();
  command->add_option("--out", flags->out, "safetensors file to write: logits.i [T, V] f32");
  command->add_option("--chunk", flags->chunk, "prompt tokens per step, a multiple of 64")->check(CLI::NonNegativeNumber);
  command->add_option("--transport", flags->transport, kRunnerTransportHelp)
      ->check(CLI::IsMember(RunnerTransports()));
  command->footer(
      "Example: plumbline logits --model deploy/demo_model/model --tokens tokens.safetensors "
      "--out logits.safetensors --tp 2 --pp 2");
  command->callback([flags, &chosen] { chosen = [flags] { return RunLogits(*flags); }; });
}

}  // namespace plumbline
