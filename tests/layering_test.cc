// Who may include whom (DESIGN.md, "Layers"), read from the sources themselves.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <vector>

namespace plumbline {
namespace {

namespace fs = std::filesystem;

// A folder, and the prefixes of includes of ours that its files may have. The longest matching folder counts.
struct Layer {
  const char* folder;
  std::vector<std::string> may_include;
};

const std::vector<Layer>& Layers() {
  static const std::vector<Layer> layers = {
      {"proto/", {"proto/"}},
      {"kernels/", {"kernels/"}},
      // The plan half, pure arithmetic: it knows a dtype, not an op.
      {"parallel/",
       {"parallel/", "proto/", "kernels/tensor.h", "kernels/check.h", "kernels/device.h", "kernels/ops.h"}},
      {"worker/model/",
       {"worker/model/", "worker/weight_cache.h", "worker/weight_source.h", "parallel/", "proto/status.h", "kernels/"}},
      {"worker/", {"worker/", "parallel/", "proto/", "kernels/"}},
      {"coordinator/text/", {"coordinator/text/", "proto/status.h", "kernels/check.h"}},
      {"coordinator/engine/",
       {"coordinator/engine/", "coordinator/text/", "parallel/", "proto/status.h", "kernels/check.h"}},
      {"coordinator/security/", {"coordinator/security/", "proto/status.h", "kernels/check.h"}},
      {"coordinator/api/",
       {"coordinator/api/", "coordinator/engine/", "coordinator/security/", "coordinator/text/", "parallel/", "proto/",
        "kernels/check.h"}},
      {"coordinator/cluster/",
       {"coordinator/cluster/", "coordinator/api/cluster_info.h", "coordinator/engine/step_runner.h", "parallel/", "proto/",
        "kernels/check.h"}},
      {"cli/", {"cli/", "coordinator/", "worker/", "parallel/", "proto/", "kernels/"}},
  };
  return layers;
}

const Layer* LayerOf(const std::string& path) {
  const Layer* best = nullptr;
  for (const Layer& layer : Layers()) {
    if (path.rfind(layer.folder, 0) == 0 &&
        (best == nullptr || std::string(layer.folder).size() > std::string(best->folder).size())) {
      best = &layer;
    }
  }
  return best;
}

bool StartsWithAny(const std::string& text, const std::vector<std::string>& prefixes) {
  for (const std::string& prefix : prefixes) {
    if (text.rfind(prefix, 0) == 0) return true;
  }
  return false;
}

struct SourceFile {
  std::string path;  // from the root
  std::vector<std::string> ours;    // #include "folder/..."
  std::vector<std::string> others;  // #include <...>
};

SourceFile Read(const fs::path& file, const fs::path& root) {
  static const std::regex kInclude(R"(^\s*#include\s+(["<])([^">]+)[">])");
  SourceFile source = {fs::relative(file, root).string(), {}, {}};
  std::ifstream stream(file);
  std::string line;
  std::smatch match;
  while (std::getline(stream, line)) {
    if (!std::regex_search(line, match, kInclude)) continue;
    const std::string name = match[2];
    const bool is_ours = LayerOf(name) != nullptr;
    (is_ours ? source.ours : source.others).push_back(name);
  }
  return source;
}

std::vector<SourceFile> Sources() {
  const fs::path root = PLUMBLINE_SOURCE_DIR;
  std::vector<SourceFile> sources;
  for (const char* folder : {"proto", "kernels", "parallel", "worker", "coordinator", "cli"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh") {
        sources.push_back(Read(entry.path(), root));
      }
    }
  }
  return sources;
}

// Violations in one file, as sentences.
std::vector<std::string> Violations(const SourceFile& source) {
  std::vector<std::string> found;
  const Layer* layer = LayerOf(source.path);
  if (layer == nullptr) return {source.path + " lies in no layer"};
  for (const std::string& include : source.ours) {
    if (!StartsWithAny(include, layer->may_include)) found.push_back(source.path + " includes " + include);
    const bool names_backend = include.rfind("kernels/cpu/", 0) == 0 || include.rfind("kernels/cuda/", 0) == 0 ||
                               include.rfind("kernels/reference/", 0) == 0;
    if (names_backend && source.path.rfind("kernels/", 0) != 0) {
      found.push_back(source.path + " names a concrete backend: " + include);
    }
  }
  const bool header = source.path.ends_with(".h");
  for (const std::string& include : source.others) {
    const bool rpc = include.rfind("grpc", 0) == 0 || include.rfind("google/protobuf", 0) == 0;
    if (header && rpc) found.push_back(source.path + " is a header with gRPC or protobuf in it: " + include);
    if (source.path.rfind("kernels/", 0) == 0 && (rpc || include.rfind("absl/", 0) == 0)) {
      found.push_back(source.path + " includes " + include + "; kernels know the standard library and CUDA only");
    }
  }
  for (const std::string& include : source.ours) {
    if (header && include.ends_with(".pb.h")) found.push_back(source.path + " is a header with messages in it: " + include);
  }
  return found;
}

TEST(Layering, FilesIncludeDownwardsOnly) {
  const std::vector<SourceFile> sources = Sources();
  ASSERT_GT(sources.size(), 100u);
  for (const SourceFile& source : sources) {
    for (const std::string& violation : Violations(source)) ADD_FAILURE() << violation;
  }
}

// The rules must be able to fail.
TEST(Layering, ViolationsAreCaught) {
  EXPECT_FALSE(Violations({"worker/model/attention.cc", {"coordinator/engine/engine.h"}, {}}).empty());
  EXPECT_FALSE(Violations({"worker/model/attention.cc", {"kernels/cpu/cpu_ops.h"}, {}}).empty());
  EXPECT_FALSE(Violations({"coordinator/engine/engine.cc", {"kernels/ops.h"}, {}}).empty());
  EXPECT_FALSE(Violations({"kernels/ops.cc", {}, {"absl/status/status.h"}}).empty());
  EXPECT_FALSE(Violations({"proto/status.h", {}, {"grpcpp/grpcpp.h"}}).empty());
  EXPECT_FALSE(Violations({"parallel/step_codec.h", {"proto/cluster.pb.h"}, {}}).empty());
  EXPECT_TRUE(Violations({"worker/model/attention.cc", {"kernels/ops.h", "parallel/mesh.h"}, {"vector"}}).empty());
}

}  // namespace
}  // namespace plumbline
