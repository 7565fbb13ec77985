// WeightCache: a rank's packed weights in a file, which the processes of a host map and share. The first start packs and
// writes it; later ones read it back and pack nothing.
//
// The file is a safetensors file of u8 tensors, one per packed weight. Its metadata hold the key, which is compared whole:
// version of this file, packed layout, fingerprint of the checkpoint, share of the rank. They hold a checksum (XXH3) per
// weight too, verified when the weight is asked for. Names are MODEL-VERSION-SHARE.safetensors, hashes of the checkpoint's
// folder, of layout and fingerprint, and of the share: a file that is written removes those of the same MODEL and another
// VERSION. Nothing else is ever removed.
//
// A weight that does not lie on huge pages (worker/huge_pages.h) is to be copied: shared memory is not worth a tenth of the
// speed.
//
// A cache never fails a start: what cannot be read is packed again, what cannot be written is one line of the log. It is as
// trusted as the checkpoint: checksums find damage, not intent. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "worker/weight_source.h"

namespace plumbline {

class SafetensorsFile;

class WeightCache {
 public:
  struct Options {
    std::string folder;  // made when it is missing
    CheckpointIdentity checkpoint;
    std::string layout;  // Ops::packed_layout(), not empty
    std::string share;   // what else decides about bytes: the model as it is read, act, mesh, rank
    std::function<void(const std::string& line)> on_line;  // for the log; may be empty
  };
  // Maps the file of this key where there is one.
  explicit WeightCache(Options options);
  ~WeightCache();
  WeightCache(const WeightCache&) = delete;
  WeightCache& operator=(const WeightCache&) = delete;

  const std::string& path() const { return path_; }
  bool is_mapped() const { return file_ != nullptr; }

  struct Found {
    ConstTensor packed;        // [bytes] u8 in the mapping, aligned to 64 bytes, as long as this cache lives
    bool should_copy = false;  // to memory of the rank's own; then Release
  };
  // DATA_LOSS: the file is damaged; it names file and weight. REQUIRES: is_mapped().
  absl::StatusOr<Found> Find(const std::string& name, int64_t num_bytes);
  // The pages of a weight are not needed any more: it was copied.
  void Release(const ConstTensor& packed) const;
  // One line of the log about what was found.
  void LogUse() const;

  // Forgets a damaged file: the weights are to be packed again. Pointers that Find gave end here.
  void Discard(const absl::Status& damage);

  struct Weight {
    std::string name;
    ConstTensor packed;  // [bytes] u8 in host memory
  };
  // Writes the file. on_progress is called every few megabytes.
  void Save(const std::vector<Weight>& weights, const std::function<void()>& on_progress) const;

 private:
  absl::Status Map();
  absl::Status Write(const std::vector<Weight>& weights, const std::function<void()>& on_progress) const;
  void RemoveStale() const;
  void Log(const std::string& line) const;

  Options options_;
  std::string key_, model_, version_, path_;
  std::unique_ptr<SafetensorsFile> file_;
  int64_t shared_bytes_ = 0, copied_bytes_ = 0;
};

}  // namespace plumbline
