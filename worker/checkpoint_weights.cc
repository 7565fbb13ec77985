// OpenCheckpoint: the files of a model directory, checked against the plan, as a WeightSource.
#include <algorithm>
#include <filesystem>
#include <map>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "parallel/json_reader.h"
#include "proto/status.h"
#include "worker/safetensors.h"
#include "worker/sha256.h"
#include "worker/weight_source.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxIndexBytes = int64_t{100} << 20;
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

struct Location {
  const SafetensorsFile* file = nullptr;
  const SafetensorsEntry* entry = nullptr;
};

// The plan's name for a tensor of the file: the text part of a vision-language checkpoint lies one
// level deeper.
std::string CanonicalName(const std::string& name) {
  std::string_view rest = name;
  const std::string_view kNested = "model.language_model.";
  if (rest.substr(0, kNested.size()) != kNested) return name;
  return absl::StrCat("model.", std::string(rest.substr(kNested.size())));
}

// Tensors a model of this configuration does without: other modalities, draft heads, what is
// computed anyway, and layers past the configuration's last (it may have been shortened).
bool IsSkippable(const std::string& name, const ModelConfig& config) {
  for (const char* prefix : {"model.visual.", "visual.", "mtp.", "model.mtp."}) {
    if (absl::StartsWith(name, prefix)) return true;
  }
  if (absl::EndsWith(name, ".rotary_emb.inv_freq")) return true;
  if (name == "lm_head.weight") return config.tied_head;
  const std::string kLayers = "model.layers.";
  if (!absl::StartsWith(name, kLayers)) return false;
  int64_t layer = 0;
  const std::string number =
      name.substr(kLayers.size(), name.find('.', kLayers.size()) - kLayers.size());
  return absl::SimpleAtoi(number, &layer) && layer >= config.num_layers();
}

class CheckpointWeights : public WeightSource {
 public:
  absl::Status Open(const std::string& model_dir, const ModelConfig& config,
                    const ShardPlan& plan) {
    folder_ = std::filesystem::absolute(model_dir).lexically_normal().string();
    PL_RETURN_IF_ERROR(FindTensors(model_dir));
    PL_RETURN_IF_ERROR(CheckPlanned(model_dir, config, plan));
    return SortOutOthers(config, plan);
  }

  absl::StatusOr<ConstTensor> Rows(const TensorPlan& tensor, RowRange range) override {
    const Location& location = Find(tensor);
    const DType dtype = location.entry->dtype == "F32"    ? DType::kF32
                        : location.entry->dtype == "BF16" ? DType::kBf16
                                                          : DType::kF16;
    const ConstTensor all(location.file->Data(*location.entry), dtype,
                          {tensor.rows, tensor.columns});
    return all.Rows(range.first, range.count);
  }

  bool IsMapped() const override { return true; }

  void Release(const TensorPlan& tensor, RowRange range) override {
    const absl::StatusOr<ConstTensor> rows = Rows(tensor, range);
    Find(tensor).file->Release(static_cast<const std::byte*>(rows->raw()), rows->num_bytes());
  }

  std::optional<CheckpointIdentity> Identity() const override {
    std::map<std::string, std::string> by_path;  // in an order of its own
    for (const auto& [path, file] : files_) by_path[path] = file->fingerprint();
    Sha256 all;
    for (const auto& [path, fingerprint] : by_path) {
      all.Update(std::filesystem::path(path).filename().string());
      all.Update(fingerprint);
    }
    return CheckpointIdentity{folder_, all.HexDigest()};
  }

  std::vector<std::string> SkippedTensors() const override { return skipped_; }

 private:
  const Location& Find(const TensorPlan& tensor) const {
    const auto it = locations_.find(tensor.name);
    PL_CHECK_MSG(it != locations_.end(), tensor.name.c_str());
    return it->second;
  }

  absl::StatusOr<const SafetensorsFile*> OpenFile(const std::string& path) {
    std::unique_ptr<SafetensorsFile>& file = files_[path];
    if (file == nullptr) {
      PL_ASSIGN_OR_RETURN(file, SafetensorsFile::Open(path));
    }
    return file.get();
  }

  absl::Status AddTensor(const SafetensorsFile& file, const std::string& name) {
    const SafetensorsEntry* entry = file.Find(name);
    if (entry == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": there is no tensor ", name,
                                                     ", though ", kIndexFile, " says so"));
    }
    const auto [it, is_new] = locations_.emplace(CanonicalName(name), Location{&file, entry});
    if (!is_new) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor ", name,
                                                     " is the same as ", it->second.entry->name,
                                                     " of ", it->second.file->path()));
    }
    return absl::OkStatus();
  }

  absl::Status FindTensors(const std::string& model_dir) {
    const std::string index_path = absl::StrCat(model_dir, "/", kIndexFile);
    std::error_code ignored;
    if (!std::filesystem::exists(index_path, ignored)) {
      PL_ASSIGN_OR_RETURN(const SafetensorsFile* file,
                          OpenFile(absl::StrCat(model_dir, "/", kSingleFile)));
      for (const SafetensorsEntry& entry : file->entries())
        PL_RETURN_IF_ERROR(AddTensor(*file, entry.name));
      return absl::OkStatus();
    }
    PL_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path, kMaxIndexBytes));
    PL_ASSIGN_OR_RETURN(const nlohmann::json index, ParseJsonObject(text, index_path));
    const auto map = index.find("weight_map");
    if (map == index.end() || !map->is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map is missing or not an object"));
    }
    for (const auto& [name, json] : map->items()) {
      const std::string file_name = json.is_string() ? json.get<std::string>() : "";
      if (file_name.empty() || file_name.find('/') != std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat(index_path, ": tensor ", name, " is in ",
                                                       json.dump(),
                                                       ", which is not a file of this folder"));
      }
      PL_ASSIGN_OR_RETURN(const SafetensorsFile* file,
                          OpenFile(absl::StrCat(model_dir, "/", file_name)));
      PL_RETURN_IF_ERROR(AddTensor(*file, name));
    }
    return absl::OkStatus();
  }

  absl::Status CheckPlanned(const std::string& model_dir, const ModelConfig& config,
                            const ShardPlan& plan) const {
    for (const TensorPlan& tensor : plan.tensors()) {
      const auto it = locations_.find(tensor.name);
      if (it == locations_.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat(model_dir, ": the checkpoint has no tensor ", tensor.name));
      }
      const auto& [file, entry] = it->second;
      const bool f32_too = tensor.kept_f32 && entry->dtype == "F32";
      if (entry->dtype != SafetensorsName(config.dtype) && !f32_too) {
        return absl::InvalidArgumentError(
            absl::StrCat(file->path(), ": tensor ", entry->name, " is ", entry->dtype,
                         "; the configuration's dtype is ", SafetensorsName(config.dtype)));
      }
      if (entry->shape != tensor.shape) {
        return absl::InvalidArgumentError(
            absl::StrCat(file->path(), ": tensor ", entry->name, " has shape [",
                         absl::StrJoin(entry->shape, ", "), "]; the configuration asks for [",
                         absl::StrJoin(tensor.shape, ", "), "]"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status SortOutOthers(const ModelConfig& config, const ShardPlan& plan) {
    absl::flat_hash_map<std::string, Location> planned;
    for (const TensorPlan& tensor : plan.tensors()) planned.insert(*locations_.find(tensor.name));
    for (const auto& [name, location] : locations_) {
      if (planned.contains(name)) continue;
      if (!IsSkippable(name, config)) {
        return absl::InvalidArgumentError(absl::StrCat(location.file->path(), ": tensor ",
                                                       location.entry->name, " is not part of a ",
                                                       config.model_type, " model"));
      }
      skipped_.push_back(location.entry->name);
    }
    std::sort(skipped_.begin(), skipped_.end());
    locations_ = std::move(planned);
    return absl::OkStatus();
  }

  std::string folder_;
  absl::flat_hash_map<std::string, std::unique_ptr<SafetensorsFile>> files_;  // by path
  absl::flat_hash_map<std::string, Location> locations_;                      // by canonical name
  std::vector<std::string> skipped_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpoint(const std::string& model_dir,
                                                             const ModelConfig& config,
                                                             const ShardPlan& plan) {
  auto weights = std::make_unique<CheckpointWeights>();
  PL_RETURN_IF_ERROR(weights->Open(model_dir, config, plan));
  return weights;
}

}  // namespace plumbline
