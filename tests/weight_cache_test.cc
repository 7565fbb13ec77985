// Packed weights in a file: what was written is mapped again, whatever is wrong with a file is seen and mended, and logits
// do not depend on where the weights came from.
#include "worker/weight_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/half.h"
#include "parallel/json_reader.h"
#include "tests/golden_case.h"
#include "worker/huge_pages.h"

namespace plumbline {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

std::string FreshFolder(const std::string& name) {
  const std::string folder = absl::StrCat(::testing::TempDir(), "/weight_cache_test/", name);
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

std::string ReadAll(const std::string& path) { return ReadTextFile(path, int64_t{1} << 30).value(); }
void WriteAll(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::vector<std::string> FilesOf(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  return names;
}

// Two weights, and what is said about them.
struct Case {
  WeightCache::Options options;
  std::vector<std::string> lines;
  std::string first = std::string(4096, 'a'), second = std::string(64, 'b');

  explicit Case(const std::string& folder) {
    options = {.folder = folder,
               .checkpoint = {.folder = "/models/m", .fingerprint = "f1"},
               .layout = "tiles-1",
               .share = "rank 0",
               .on_line = [this](const std::string& line) { lines.push_back(line); }};
    first[1234] = 'x';
  }
  std::unique_ptr<WeightCache> Open() { return std::make_unique<WeightCache>(options); }
  std::string Save() {
    const auto cache = Open();
    cache->Save({{"q|k|v", View(first)}, {"down", View(second)}}, [] {});
    return cache->path();
  }
  static ConstTensor View(const std::string& bytes) {
    return {bytes.data(), DType::kU8, {static_cast<int64_t>(bytes.size())}};
  }
  // The cache gives both weights, every byte.
  bool Holds(WeightCache& cache) const {
    if (!cache.is_mapped()) return false;
    const auto a = cache.Find("q|k|v", 4096), b = cache.Find("down", 64);
    return a.ok() && b.ok() && std::memcmp(a->packed.raw(), first.data(), 4096) == 0 &&
           std::memcmp(b->packed.raw(), second.data(), 64) == 0;
  }
};

TEST(WeightCacheTest, WhatWasWrittenIsMapped) {
  Case c(FreshFolder("round_trip") + "/made/when/missing");
  EXPECT_FALSE(c.Open()->is_mapped());
  const std::string path = c.Save();
  EXPECT_THAT(FilesOf(c.options.folder), ElementsAre(fs::path(path).filename().string()));
  const auto cache = c.Open();
  ASSERT_TRUE(c.Holds(*cache));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(cache->Find("down", 64)->packed.raw()) % 64, 0u);
  cache->LogUse();
  EXPECT_THAT(c.lines, ElementsAre(HasSubstr("written to " + path), HasSubstr("mapped from " + path)));
}

TEST(WeightCacheTest, AnotherCheckpointLayoutOrShareIsAnotherFile) {
  Case c(FreshFolder("keys"));
  const std::string path = c.Save();
  const auto not_mapped = [&](auto change) {
    Case other(c.options.folder);
    change(other.options);
    return !other.Open()->is_mapped();
  };
  EXPECT_FALSE(not_mapped([](WeightCache::Options&) {}));  // the control
  EXPECT_TRUE(not_mapped([](WeightCache::Options& o) { o.checkpoint.fingerprint = "f2"; }));
  EXPECT_TRUE(not_mapped([](WeightCache::Options& o) { o.layout = "tiles-2"; }));
  EXPECT_TRUE(not_mapped([](WeightCache::Options& o) { o.share = "rank 1"; }));
  // A file under another's name.
  Case other(c.options.folder);
  other.options.share = "rank 1";
  fs::rename(path, other.Open()->path());
  EXPECT_FALSE(other.Open()->is_mapped());
  EXPECT_THAT(other.lines, ElementsAre(HasSubstr("is of other weights than its name says")));
}

TEST(WeightCacheTest, DamageIsSeenAndTheFileWrittenAnew) {
  Case c(FreshFolder("damage"));
  const std::string path = c.Save(), good = ReadAll(path);
  const auto expect_seen = [&](const std::string& bytes, const std::string& what) {
    WriteAll(path, bytes);
    c.lines.clear();
    {
      const auto cache = c.Open();
      EXPECT_FALSE(c.Holds(*cache)) << what;
      for (const char* name : {"q|k|v", "down"}) {
        if (!cache->is_mapped()) break;
        const absl::Status status = cache->Find(name, name[0] == 'q' ? 4096 : 64).status();
        if (status.ok()) continue;
        EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << what;
        EXPECT_THAT(std::string(status.message()), HasSubstr(path)) << what;
        cache->Discard(status);
      }
      EXPECT_FALSE(cache->is_mapped()) << what;
    }
    EXPECT_THAT(c.lines, ::testing::Contains(::testing::AllOf(HasSubstr(path), HasSubstr("written anew")))) << what;
    c.Save();
    EXPECT_TRUE(c.Holds(*c.Open())) << what;
  };
  for (size_t size : {size_t{0}, size_t{7}, size_t{8}, size_t{100}, good.size() - 4096, good.size() - 1}) {
    expect_seen(good.substr(0, size), absl::StrCat("cut at ", size));
  }
  expect_seen("something else entirely", "not such a file");
  expect_seen(good + "x", "too long");
  for (size_t place : {good.size() - 1, good.size() - 64 - 1, good.size() - 64 - 4096, size_t{0}, size_t{9}}) {
    std::string flipped = good;
    flipped[place] ^= 1;
    expect_seen(flipped, absl::StrCat("byte ", place, " of ", good.size(), " flipped"));
  }
  // A weight that is missing, and one of another size.
  const auto cache = c.Open();
  EXPECT_EQ(cache->Find("up", 64).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(cache->Find("down", 128).status().message()), HasSubstr("weight down has 64 bytes; 128"));
}

TEST(WeightCacheTest, WithoutHugePagesWeightsAreToBeCopied) {
  Case c(FreshFolder("slow"));
  c.first.resize(8 << 20);
  const std::string path = c.Save();
  ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
  const auto cache = c.Open();
  EXPECT_FALSE(cache->Find("down", 64)->should_copy);  // too small to matter
  const WeightCache::Found found = cache->Find("q|k|v", 8 << 20).value();
  EXPECT_TRUE(found.should_copy);
  cache->Release(found.packed);
  EXPECT_EQ(found.packed.as<char>()[1234], 'x');  // read from the file again
  cache->LogUse();
  EXPECT_THAT(c.lines.back(), HasSubstr("0.00 GB shared, 0.01 GB copied"));
  prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
}

// The other half: huge pages that are there are seen.
// Linux 6.7 and later tell which pages are huge.
bool KernelTellsHugePages() {
  utsname name;
  int major = 0, minor = 0;
  return uname(&name) == 0 && std::sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
         (major > 6 || (major == 6 && minor >= 7));
}

TEST(HugePagesTest, AreSeenWhereTheyAre) {
  constexpr size_t kHuge = 2 << 20, kBytes = 8 * kHuge;
  void* map = mmap(nullptr, kBytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(map, MAP_FAILED);
  char* begin = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(map) + kHuge - 1) / kHuge * kHuge);
  madvise(begin, kBytes, MADV_NOHUGEPAGE);
  std::memset(begin, 1, kBytes);
  EXPECT_FALSE(LiesOnHugePages(begin, kBytes));
  madvise(begin, kBytes, MADV_HUGEPAGE);
  CollapseIntoHugePages(begin, kBytes);
  if (madvise(begin, kBytes, 25 /* MADV_COLLAPSE */) != 0) GTEST_SKIP() << "this kernel collapses nothing";
  if (!KernelTellsHugePages()) {
    EXPECT_FALSE(LiesOnHugePages(begin, kBytes));
    GTEST_SKIP() << "this kernel does not tell which pages are huge";
  }
  EXPECT_TRUE(LiesOnHugePages(begin, kBytes));
  EXPECT_TRUE(LiesOnHugePages(begin + kHuge / 2 + 64, 3 * kHuge));
  munmap(map, kBytes + kHuge);
}

TEST(WeightCacheTest, WritersMayRaceAndReadersSeeWholeFiles) {
  const std::string folder = FreshFolder("race");
  constexpr int kWriters = 3, kRounds = 40;
  std::atomic<int> writing = kWriters;
  std::vector<std::thread> writers;
  for (int i = 0; i < kWriters; ++i) {
    writers.emplace_back([&] {
      const Case c(folder);
      WeightCache::Options quiet = c.options;
      quiet.on_line = nullptr;
      for (int round = 0; round < kRounds; ++round) {
        WeightCache(quiet).Save({{"q|k|v", Case::View(c.first)}, {"down", Case::View(c.second)}}, [] {});
      }
      --writing;
    });
  }
  int whole = 0;
  while (writing > 0) {
    Case c(folder);
    const auto cache = c.Open();
    if (!cache->is_mapped()) {
      EXPECT_THAT(c.lines, IsEmpty());  // not there yet; never half there
      continue;
    }
    EXPECT_TRUE(c.Holds(*cache));
    ++whole;
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_GT(whole, 0);
  EXPECT_EQ(FilesOf(folder).size(), 1u);  // and nothing partial is left
}

TEST(WeightCacheTest, WhatCannotBeWrittenIsALineOfTheLog) {
  const std::string folder = FreshFolder("unwritable");
  WriteAll(folder + "/file", "");
  Case c(folder + "/file");
  c.Save();
  EXPECT_THAT(c.lines, ::testing::Contains(::testing::AllOf(HasSubstr(folder + "/file"), HasSubstr("going on without"))));
}

TEST(WeightCacheTest, AnEarlierStateOfTheSameModelIsRemovedAndNothingElse) {
  const std::string folder = FreshFolder("stale");
  Case old(folder), other_model(folder), other_rank(folder), now(folder);
  other_model.options.checkpoint.folder = "/models/n";
  other_rank.options.checkpoint.fingerprint = now.options.checkpoint.fingerprint = "f2";
  other_rank.options.share = "rank 1";
  const std::string old_path = old.Save(), partial = old_path + ".partial.";
  const auto name = [](const std::string& path) { return fs::path(path).filename().string(); };
  WriteAll(folder + "/mine.txt", "");
  WriteAll(partial + "old", "");
  WriteAll(partial + "new", "");
  fs::last_write_time(partial + "old", fs::file_time_type::clock::now() - std::chrono::hours(48));
  const std::string model_path = other_model.Save(), rank_path = other_rank.Save(), path = now.Save();
  EXPECT_THAT(FilesOf(folder), UnorderedElementsAre("mine.txt", name(partial + "new"), name(model_path),
                                                    name(rank_path), name(path)));
}

// ---- as ranks use it ---------------------------------------------------------------------------

struct Started {
  std::vector<float> logits;
  int mapped = 0, written = 0, anew = 0;  // lines of all ranks
};

Started Start(const std::string& model_dir, const GoldenCase& golden, Mesh mesh, const std::string& cache_dir) {
  Started started;
  std::mutex mutex;
  RunShape shape = {.mesh = mesh, .arithmetic = CpuArithmetics().front(), .compute_dtype = golden.config.dtype};
  shape.cache_dir = cache_dir;
  shape.on_line = [&](int, const std::string& line) {
    std::lock_guard lock(mutex);
    started.mapped += absl::StrContains(line, "mapped from");
    started.written += absl::StrContains(line, "written to");
    started.anew += absl::StrContains(line, "written anew");
  };
  auto ranks = StartModel(model_dir, golden.config, shape);
  started.logits = PromptLogits(*ranks, golden.sequences[0].tokens, 64);
  return started;
}

enum class Checksum { kLeft, kMended };

// Changes one bit of the largest weight of a cache file; with kMended so that its checksum fits again.
void FlipOneBit(const std::string& path, Checksum checksum) {
  std::string bytes = ReadAll(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  const auto file = SafetensorsFile::Open(path).value();
  SafetensorsEntry largest = file->entries()[0];
  for (const SafetensorsEntry& entry : file->entries()) {
    if (entry.end - entry.begin > largest.end - largest.begin) largest = entry;
  }
  char* weight = bytes.data() + 8 + header_bytes + largest.begin;
  const size_t size = largest.end - largest.begin;
  const std::string before = absl::StrCat(absl::Hex(XXH3_64bits(weight, size), absl::kZeroPad16));
  weight[1] ^= 0x40;  // a high bit of the first bf16's exponent
  const std::string after = absl::StrCat(absl::Hex(XXH3_64bits(weight, size), absl::kZeroPad16));
  if (checksum == Checksum::kMended) {
    const size_t place = bytes.find(before);
    ASSERT_LT(place, 8 + header_bytes);
    bytes.replace(place, before.size(), after);
  }
  WriteAll(path, bytes);
}

class CachedModelTest : public testing::TestWithParam<std::tuple<std::string, Mesh>> {};

TEST_P(CachedModelTest, LogitsAreTheSameBitsFromTheCache) {
  const auto& [model, mesh] = GetParam();
  const GoldenCase golden = LoadGolden(model);
  const std::string folder = FreshFolder(absl::StrCat(model, mesh.tp, mesh.pp));
  const Started without = Start(golden.dir, golden, mesh, "");
  const Started first = Start(golden.dir, golden, mesh, folder);
  const Started second = Start(golden.dir, golden, mesh, folder);
  EXPECT_EQ(without.mapped + without.written, 0);
  EXPECT_EQ(std::tie(first.mapped, first.written), std::make_tuple(0, mesh.size()));
  EXPECT_EQ(std::tie(second.mapped, second.written), std::make_tuple(mesh.size(), 0));
  EXPECT_EQ(first.logits, without.logits);
  EXPECT_EQ(second.logits, without.logits);

  // A flipped bit is refused, the file mended.
  const std::string path = fs::directory_iterator(folder)->path().string();
  FlipOneBit(path, Checksum::kLeft);
  const Started damaged = Start(golden.dir, golden, mesh, folder);
  EXPECT_EQ(damaged.anew, 1);
  EXPECT_EQ(damaged.written, 1);
  EXPECT_EQ(damaged.logits, without.logits);
  EXPECT_EQ(Start(golden.dir, golden, mesh, folder).mapped, mesh.size());

  // The control: were it not refused, it would be seen here.
  FlipOneBit(path, Checksum::kMended);
  const Started forged = Start(golden.dir, golden, mesh, folder);
  EXPECT_EQ(forged.mapped, mesh.size());
  EXPECT_NE(forged.logits, without.logits);
}

INSTANTIATE_TEST_SUITE_P(All, CachedModelTest,
                         testing::Combine(testing::Values("qwen3", "qwen35_text", "qwen3_moe", "qwen2_tied"),
                                          testing::Values(Mesh{1, 1}, Mesh{2, 2})),
                         [](const auto& info) {
                           const Mesh mesh = std::get<1>(info.param);
                           return absl::StrCat(std::get<0>(info.param), "_tp", mesh.tp, "_pp", mesh.pp);
                         });

TEST(ChangedModelTest, AChangedCheckpointIsPackedAgainEvenWithItsOldTime) {
  const GoldenCase golden = LoadGolden("qwen3");
  const std::string model_dir = FreshFolder("model"), folder = FreshFolder("changed");
  for (const auto& entry : fs::directory_iterator(golden.dir)) fs::copy(entry.path(), model_dir);
  const Started before = Start(model_dir, golden, {1, 1}, folder);
  std::string path;
  for (const auto& entry : fs::directory_iterator(model_dir)) {
    const std::string name = entry.path().filename().string();
    if (absl::StartsWith(name, "model") && absl::EndsWith(name, ".safetensors")) path = entry.path().string();
  }
  const auto time = fs::last_write_time(path);
  std::string bytes = ReadAll(path);
  const auto file = SafetensorsFile::Open(path).value();
  const SafetensorsEntry* down = file->Find("model.layers.0.mlp.down_proj.weight");
  ASSERT_NE(down, nullptr);
  bytes[reinterpret_cast<const char*>(file->Data(*down)) - reinterpret_cast<const char*>(file->Data(file->entries()[0])) +
        bytes.size() - file->entries().back().end + 1] ^= 0x40;
  WriteAll(path, bytes);
  fs::last_write_time(path, time);
  const Started after = Start(model_dir, golden, {1, 1}, folder);
  EXPECT_EQ(std::tie(after.mapped, after.written), std::make_tuple(0, 1));
  EXPECT_NE(after.logits, before.logits);
  EXPECT_EQ(after.logits, Start(model_dir, golden, {1, 1}, "").logits);
  EXPECT_EQ(FilesOf(folder).size(), 1u);  // the old one is gone
}

// ---- the layout's name -------------------------------------------------------------------------

// Who changes what PackLinear writes must change its name, or old files are read as new ones. The formula is that of
// kernels/cpu/linear_layout.h, written down a second time.
TEST(PackedLayoutTest, TheNameStandsForTheseBytes) {
  const Backend backend = MakeCpuBackend({.arithmetic = CpuArithmetics().front(), .num_threads = 1});
  ASSERT_EQ(backend.ops->packed_layout(), "cpu-tiles-1");
  EXPECT_EQ(MakeReferenceBackend().ops->packed_layout(), "");
  for (const bool gated : {false, true}) {
    constexpr int64_t kN = 80, kK = 70;
    const int num_leaves = gated ? 1 : 2;
    const int64_t leaf_k = kK / num_leaves, padded_leaf_k = gated ? 96 : 64;
    const LinearShape shape = {.n = kN, .k = kK, .num_leaves = num_leaves, .dtype = DType::kBf16, .gated = gated};
    std::vector<uint16_t> source(kN * kK);
    for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint16_t>(i + 1);
    const int64_t blocks = 3;  // of 32 columns; of 16 gate and 16 up
    std::vector<uint16_t> expected(blocks * num_leaves * padded_leaf_k * 32);
    for (int64_t n = 0; n < kN; ++n) {
      const int64_t half = n % (kN / 2);
      const int64_t block = gated ? half / 16 : n / 32;
      const int64_t column = gated ? half % 16 + (n < kN / 2 ? 0 : 16) : n % 32;
      for (int64_t k = 0; k < kK; ++k) {
        const int64_t in_leaf = k % leaf_k;
        const int64_t tile = (block * num_leaves + k / leaf_k) * (padded_leaf_k / 32) + in_leaf / 32;
        const int64_t in_tile = in_leaf % 32;
        expected[tile * 1024 + column / 16 * 512 + in_tile / 2 * 32 + column % 16 * 2 + in_tile % 2] = source[n * kK + k];
      }
    }
    ASSERT_EQ(backend.ops->PackedBytes(shape), static_cast<int64_t>(expected.size() * 2)) << gated;
    const Buffer packed = backend.device->Allocate(expected.size() * 2);
    backend.ops->PackLinear({.out = packed.View(DType::kU8, {static_cast<int64_t>(packed.num_bytes())}),
                             .shape = shape,
                             .source = {source.data(), DType::kBf16, {kN, kK}}});
    const auto* values = static_cast<const uint16_t*>(packed.data());
    EXPECT_EQ(std::vector<uint16_t>(values, values + expected.size()), expected) << gated;
  }
}

}  // namespace
}  // namespace plumbline
