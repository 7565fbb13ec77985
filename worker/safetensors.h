// Safetensors files: a mapped reader that trusts nothing in the file, and a streaming writer.
// Format: 8 bytes header length (little endian), a JSON header {name: {dtype, shape,
// data_offsets}}, then the tensors' bytes without gaps. https://github.com/huggingface/safetensors
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace plumbline {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // as the file spells it: "BF16", "F32", ...
  std::vector<int64_t> shape;  // any number of dimensions
  uint64_t begin = 0;          // bytes of the data part
  uint64_t end = 0;
};

const char* SafetensorsName(DType dtype);  // "BF16"

// Thread-safe after Open. The file must not change while it is open.
class SafetensorsFile {
 public:
  // Maps the file and checks the whole header: dtypes, shapes and offsets agree, the tensors cover
  // the data part exactly once. INVALID_ARGUMENT names file and tensor; NOT_FOUND when there is no
  // such file.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  // SHA-256 over header, size, and times of last modification and change.
  const std::string& fingerprint() const { return fingerprint_; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // by place in the file
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const SafetensorsEntry* Find(std::string_view name) const;  // nullptr when there is none

  // The tensor in the mapping, at most four dimensions. INVALID_ARGUMENT naming file and tensor
  // when it is missing or of another dtype.
  absl::StatusOr<ConstTensor> Read(std::string_view name, DType dtype) const;
  const std::byte* Data(const SafetensorsEntry& entry) const { return data_ + entry.begin; }
  // Lets go of the whole pages inside [begin, begin + size); a later read fetches them from the
  // file again.
  void Release(const std::byte* begin, size_t size) const;
  // Asks for huge pages, for a file that is read as long as it is open.
  void PreferHugePages() const;

 private:
  explicit SafetensorsFile(std::string path) : path_(std::move(path)) {}
  absl::Status Map();
  absl::Status ReadHeader();
  absl::Status CheckCoverage() const;

  std::string path_;
  std::string fingerprint_;
  std::string stamp_;  // size and times
  std::byte* map_ = nullptr;
  size_t map_bytes_ = 0;
  const std::byte* data_ = nullptr;  // behind the header
  size_t data_bytes_ = 0;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
  absl::flat_hash_map<std::string, size_t> index_;
};

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// Writes PATH.partial.RANDOM and renames it when complete: readers see the old file or the new one,
// also where several write it at once. Equal calls give equal bytes. Not finished: the partial file
// is removed. The data part begins on a page.
class SafetensorsWriter {
 public:
  // The tensors lie in the file in the given order.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, const std::vector<SafetensorsTensor>& tensors,
      const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // The next bytes of the data part, tensor after tensor, in pieces of any size.
  absl::Status Append(const void* bytes, size_t size);
  // INVALID_ARGUMENT when bytes are missing; else flushed to the disk and in place.
  absl::Status Finish();

 private:
  explicit SafetensorsWriter(std::string path) : path_(std::move(path)) {}
  absl::Status Write(const void* bytes, size_t size);
  absl::Status Flush();

  std::string path_, partial_;
  int file_ = -1;
  std::string buffer_;  // not written yet; begins at a multiple of kChunkBytes of the file
  uint64_t missing_bytes_ = 0;
};

}  // namespace plumbline
