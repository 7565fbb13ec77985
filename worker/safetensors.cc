#include "worker/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "parallel/json_reader.h"
#include "proto/status.h"
#include "worker/sha256.h"

namespace plumbline {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kLengthBytes = 8;
constexpr size_t kPage = 4096;
constexpr size_t kChunkBytes = size_t{4} << 20;  // of writing

struct DTypeName {
  const char* name;
  uint64_t bytes;
};
constexpr DTypeName kDTypes[] = {{"BOOL", 1},    {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1},
                                 {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
                                 {"BF16", 2},    {"U32", 4}, {"I32", 4}, {"F32", 4},
                                 {"U64", 8},     {"I64", 8}, {"F64", 8}};

uint64_t BytesOf(const std::string& dtype) {  // 0: unknown
  for (const DTypeName& known : kDTypes) {
    if (dtype == known.name) return known.bytes;
  }
  return 0;
}

absl::Status SystemError(const std::string& path, const char* what) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", std::strerror(errno));
  return errno == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
}

// Bytes of a tensor of this shape; false when the product does not fit.
bool TensorBytes(const std::vector<int64_t>& shape, uint64_t element_bytes, uint64_t* bytes) {
  *bytes = element_bytes;
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(*bytes, static_cast<uint64_t>(size), bytes)) return false;
  }
  return true;
}

absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& name, const nlohmann::json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("its header entry is not an object");
  absl::Status error;
  const JsonReader reader(&json, "", &error);
  constexpr IntRange kAny = {0, INT64_MAX};
  SafetensorsEntry entry{.name = name, .dtype = reader.StringOr("dtype", "")};
  entry.shape = reader.Ints("shape", kAny);
  const std::vector<int64_t> offsets = reader.Ints("data_offsets", kAny);
  PL_RETURN_IF_ERROR(error);
  if (!reader.Has("shape")) return absl::InvalidArgumentError("shape is missing");
  const uint64_t element_bytes = BytesOf(entry.dtype);
  if (element_bytes == 0)
    return absl::InvalidArgumentError(absl::StrCat("dtype '", entry.dtype, "' is not known"));
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    return absl::InvalidArgumentError("data_offsets is not [begin, end]");
  }
  entry.begin = offsets[0];
  entry.end = offsets[1];
  uint64_t bytes = 0;
  if (!TensorBytes(entry.shape, element_bytes, &bytes) || bytes != entry.end - entry.begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape [", absl::StrJoin(entry.shape, ", "), "] of ", entry.dtype,
                     " does not take the ", entry.end - entry.begin, " bytes of its data_offsets"));
  }
  return entry;
}

}  // namespace

const char* SafetensorsName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBf16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kU8:
      return "U8";
  }
  return "";
}

// ---- reading --------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path));
  PL_RETURN_IF_ERROR(file->Map());
  PL_RETURN_IF_ERROR(file->ReadHeader());
  PL_RETURN_IF_ERROR(file->CheckCoverage());
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ != nullptr) munmap(map_, map_bytes_);
}

absl::Status SafetensorsFile::Map() {
  const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return SystemError(path_, "cannot be opened");
  struct stat info;
  if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(file);
    return absl::InvalidArgumentError(absl::StrCat(path_, ": is not a regular file"));
  }
  map_bytes_ = info.st_size;
  stamp_ = absl::StrCat(info.st_size, " ", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec, " ",
                        info.st_ctim.tv_sec, ".", info.st_ctim.tv_nsec);
  if (map_bytes_ < kLengthBytes) {
    close(file);
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": has ", map_bytes_, " bytes, too short for safetensors"));
  }
  void* map = mmap(nullptr, map_bytes_, PROT_READ, MAP_SHARED, file, 0);
  const absl::Status status =
      map == MAP_FAILED ? SystemError(path_, "cannot be mapped") : absl::OkStatus();
  close(file);
  if (status.ok()) map_ = static_cast<std::byte*>(map);
  return status;
}

absl::Status SafetensorsFile::ReadHeader() {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, map_, kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > map_bytes_ - kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": the header claims ", header_bytes, " bytes; the file has ",
                     map_bytes_ - kLengthBytes, " behind the length, and at most ", kMaxHeaderBytes,
                     " are allowed"));
  }
  data_ = map_ + kLengthBytes + header_bytes;
  data_bytes_ = map_bytes_ - kLengthBytes - header_bytes;
  const std::string_view text(reinterpret_cast<const char*>(map_) + kLengthBytes, header_bytes);
  Sha256 fingerprint;
  fingerprint.Update(stamp_);
  fingerprint.Update(text);
  fingerprint_ = fingerprint.HexDigest();
  PL_ASSIGN_OR_RETURN(const nlohmann::json header, ParseJsonObject(text, path_ + ": header"));
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : json.items()) {
        if (value.is_string()) metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    absl::StatusOr<SafetensorsEntry> entry = ParseEntry(name, json);
    if (!entry.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor ", name, ": ", entry.status().message()));
    }
    entries_.push_back(*std::move(entry));
  }
  std::sort(entries_.begin(), entries_.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  for (size_t i = 0; i < entries_.size(); ++i) index_[entries_[i].name] = i;
  return absl::OkStatus();
}

absl::Status SafetensorsFile::CheckCoverage() const {
  uint64_t expected = 0;
  for (const SafetensorsEntry& entry : entries_) {
    if (entry.end > data_bytes_) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor ", entry.name, " ends at byte ", entry.end,
                       " of the data, but the file holds ", data_bytes_, ": it is truncated"));
    }
    if (entry.begin != expected) {
      return absl::InvalidArgumentError(absl::StrCat(
          path_, ": tensor ", entry.name, " starts at byte ", entry.begin, " of the data, ",
          entry.begin < expected ? "inside the tensor before it, which ends at "
                                 : "but the one before it ends at ",
          expected));
    }
    if (reinterpret_cast<uintptr_t>(Data(entry)) % BytesOf(entry.dtype) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor ", entry.name,
                                                     " is not aligned to its ", entry.dtype,
                                                     " elements; save the file anew"));
    }
    expected = entry.end;
  }
  if (expected != data_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", data_bytes_ - expected,
                                                   " bytes behind the last tensor belong to none"));
  }
  return absl::OkStatus();
}

const SafetensorsEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &entries_[it->second];
}

absl::StatusOr<ConstTensor> SafetensorsFile::Read(std::string_view name, DType dtype) const {
  const SafetensorsEntry* entry = Find(name);
  if (entry == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": there is no tensor ", std::string(name)));
  }
  if (entry->dtype != SafetensorsName(dtype) || entry->shape.size() > 4) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor ", entry->name, " is ", entry->dtype, " [",
                     absl::StrJoin(entry->shape, ", "), "]; ", SafetensorsName(dtype),
                     " of at most four dimensions is expected"));
  }
  Shape shape;
  for (int64_t size : entry->shape) shape.dims[shape.rank++] = size;
  return ConstTensor(Data(*entry), dtype, shape);
}

void SafetensorsFile::Release(const std::byte* begin, size_t size) const {
  const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + size) / page * page;
  // Only advice: where it fails, the pages stay until the kernel wants them.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void SafetensorsFile::PreferHugePages() const {
  madvise(map_, map_bytes_, MADV_HUGEPAGE);  // advice, as above
}

// ---- writing --------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<SafetensorsTensor>& tensors,
    const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    uint64_t bytes = 0;
    PL_CHECK(TensorBytes(tensor.shape, SizeOf(tensor.dtype), &bytes) &&
             !header.contains(tensor.name));
    header[tensor.name] = {{"dtype", SafetensorsName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + kLengthBytes + kPage - 1) / kPage * kPage - kLengthBytes, ' ');  // aligns the data

  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter(path));
  writer->partial_ = absl::StrCat(path, ".partial.", absl::Hex(std::random_device{}(), absl::kZeroPad8));
  writer->file_ = open(writer->partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (writer->file_ < 0) return SystemError(writer->partial_, "cannot be created");
  writer->missing_bytes_ = offset;
  const uint64_t header_bytes = text.size();
  PL_RETURN_IF_ERROR(writer->Write(&header_bytes, kLengthBytes));
  PL_RETURN_IF_ERROR(writer->Write(text.data(), text.size()));
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (file_ < 0) return;
  close(file_);
  unlink(partial_.c_str());
}

// In whole chunks: the file system then keeps the file on huge pages, where it can.
absl::Status SafetensorsWriter::Write(const void* bytes, size_t size) {
  const char* next = static_cast<const char*>(bytes);
  while (size > 0) {
    const size_t count = std::min(size, kChunkBytes - buffer_.size());
    buffer_.append(next, count);
    next += count;
    size -= count;
    if (buffer_.size() == kChunkBytes) PL_RETURN_IF_ERROR(Flush());
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Flush() {
  for (size_t done = 0; done < buffer_.size();) {
    const ssize_t written = write(file_, buffer_.data() + done, buffer_.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return SystemError(partial_, "cannot be written");
    done += written;
  }
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Append(const void* bytes, size_t size) {
  PL_CHECK(size <= missing_bytes_);
  missing_bytes_ -= size;
  return Write(bytes, size);
}

absl::Status SafetensorsWriter::Finish() {
  PL_CHECK(file_ >= 0);
  if (missing_bytes_ != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(partial_, ": ", missing_bytes_, " bytes of tensors are missing"));
  }
  PL_RETURN_IF_ERROR(Flush());
  if (fsync(file_) != 0) return SystemError(partial_, "cannot be flushed");
  if (rename(partial_.c_str(), path_.c_str()) != 0)
    return SystemError(path_, "cannot be put in place");
  close(file_);
  file_ = -1;
  return absl::OkStatus();
}

}  // namespace plumbline
