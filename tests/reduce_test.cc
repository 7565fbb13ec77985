// The exchange of partial sums gives the bits of one balanced tree at every group size, over every transport and by both
// routes. The expected bits come from plain loops over all leaves in this file.
#include "parallel/reduce.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"

namespace plumbline {
namespace {

constexpr int kLeaves = 8;

// Leaves of very different magnitude, so that the order of adding shows in the bits.
std::vector<std::vector<float>> MakeLeaves(int64_t num_elements) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-6, 6);
  std::vector<std::vector<float>> leaves(kLeaves, std::vector<float>(num_elements));
  for (auto& leaf : leaves) {
    for (float& x : leaf) x = std::ldexp(normal(random), exponent(random));
  }
  return leaves;
}

// ((0+1)+(2+3))+... of the leaves [first, first + count), per element.
std::vector<float> Tree(const std::vector<std::vector<float>>& leaves, int first, int count) {
  if (count == 1) return leaves[first];
  std::vector<float> left = Tree(leaves, first, count / 2);
  const std::vector<float> right = Tree(leaves, first + count / 2, count / 2);
  for (size_t i = 0; i < left.size(); ++i) left[i] += right[i];
  return left;
}

std::vector<float> InOrder(const std::vector<std::vector<float>>& leaves) {
  std::vector<float> sum = leaves[0];
  for (int l = 1; l < kLeaves; ++l) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += leaves[l][i];
  }
  return sum;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

enum class Transport { kLocal, kGloo, kShm };

struct Case {
  Transport transport;
  int size;
};

std::vector<std::unique_ptr<Communicator>> MakeGroup(const Case& c) {
  if (c.transport == Transport::kLocal) return MakeLocalGroup(c.size, absl::Seconds(30));
  std::vector<std::unique_ptr<Communicator>> members(c.size);
  std::unique_ptr<RendezvousStore> store = MakeInProcessStore();
  std::vector<std::thread> threads;
  for (int r = 0; r < c.size; ++r) {
    threads.emplace_back([&, r] {
      const GroupMember options = {.rank = r, .size = c.size, .group = "reduce", .bind_address = "127.0.0.1"};
      auto member = c.transport == Transport::kGloo ? ConnectGloo(options, *store) : ConnectShm(options, *store);
      PL_CHECK(member.ok());
      members[r] = *std::move(member);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return members;
}

// The same by rows: the rank's own share of `total`.
void ExpectOwnRows(PartialExchange& exchange, Ops& ops, Device& device, const std::vector<float>& own,
                   const std::vector<float>& total, int rank, int64_t rows) {
  device.Upload(exchange.Local(rows), own.data());
  auto partials = exchange.ExchangeRows(rows);
  ASSERT_TRUE(partials.ok()) << partials.status();
  const int64_t share = exchange.RowsPerRank(rows), columns = partials->dim(2);
  ASSERT_EQ(partials->dim(1), share);
  Buffer buffer = device.Allocate(share * columns * sizeof(float));
  const Tensor sum = buffer.View(DType::kF32, {share * columns});
  ops.TreeSum({.out = sum, .partials = partials->Reshape({partials->dim(0), share * columns})});
  std::vector<float> got(share * columns);
  device.Download(got.data(), sum);
  const int64_t first = std::min(rank * share, rows), last = std::min(first + share, rows);
  got.resize((last - first) * columns);
  EXPECT_TRUE(SameBits(got, std::vector<float>(total.begin() + first * columns, total.begin() + last * columns)))
      << "rows of rank " << rank;
}

class PartialExchangeTest : public testing::TestWithParam<Case> {
 protected:
  // Every rank writes the tree of its own leaves, exchanges, and adds what it gets in the tree: all ranks' results.
  static std::vector<std::vector<float>> SumOverRanks(const std::vector<std::unique_ptr<Communicator>>& members,
                                                      const std::vector<std::vector<float>>& leaves, int64_t rows,
                                                      int64_t columns, int64_t gather_bytes, int64_t* num_slices) {
    const int size = static_cast<int>(members.size());
    std::vector<std::vector<float>> sums(size);
    std::vector<std::thread> threads;
    for (int r = 0; r < size; ++r) {
      threads.emplace_back([&, r] {
        Backend backend = MakeReferenceBackend();
        Device& device = *backend.device;
        PartialExchange exchange(device, *backend.ops, *members[r], rows + 3, columns, gather_bytes);
        Buffer total = device.Allocate(rows * columns * sizeof(float));
        const std::vector<float> own = Tree(leaves, r * kLeaves / size, kLeaves / size);
        for (int repeat = 0; repeat < 3; ++repeat) {
          device.Upload(exchange.Local(rows), own.data());
          auto partials = exchange.Exchange(rows);
          ASSERT_TRUE(partials.ok()) << partials.status();
          ASSERT_EQ(partials->shape(), (Shape{partials->dim(0), rows, columns}));
          if (r == 0) *num_slices = partials->dim(0);
          const Tensor out = total.View(DType::kF32, {rows * columns});
          backend.ops->TreeSum({.out = out, .partials = partials->Reshape({partials->dim(0), rows * columns})});
          sums[r].resize(rows * columns);
          device.Download(sums[r].data(), out);
          ASSERT_TRUE(SameBits(sums[r], Tree(leaves, 0, kLeaves))) << "rank " << r << ", repeat " << repeat;
          if (exchange.IsByRows(rows)) ExpectOwnRows(exchange, *backend.ops, device, own, Tree(leaves, 0, kLeaves), r, rows);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return sums;
  }
};

INSTANTIATE_TEST_SUITE_P(Groups, PartialExchangeTest,
                         testing::Values(Case{Transport::kLocal, 1}, Case{Transport::kLocal, 2},
                                         Case{Transport::kLocal, 4}, Case{Transport::kLocal, 8},
                                         Case{Transport::kGloo, 1}, Case{Transport::kGloo, 2},
                                         Case{Transport::kGloo, 4}, Case{Transport::kGloo, 8},
                                         Case{Transport::kShm, 2}, Case{Transport::kShm, 8}),
                         [](const testing::TestParamInfo<Case>& info) {
                           return absl::StrCat(info.param.transport == Transport::kLocal  ? "Local"
                                               : info.param.transport == Transport::kGloo ? "Gloo"
                                                                                          : "Shm",
                                               info.param.size);
                         });

// 1 x 1, shapes that no group size divides, and one that all do.
TEST_P(PartialExchangeTest, BothRoutesGiveTheBitsOfOneTree) {
  const auto members = MakeGroup(GetParam());
  const int size = GetParam().size;
  for (auto [rows, columns] : {std::pair{1, 1}, {3, 67}, {16, 128}, {129, 257}}) {
    const auto leaves = MakeLeaves(rows * columns);
    int64_t num_slices = 0;
    SumOverRanks(members, leaves, rows, columns, int64_t{1} << 20, &num_slices);
    EXPECT_EQ(num_slices, size) << "all-gather";
    SumOverRanks(members, leaves, rows, columns, /*gather_bytes=*/0, &num_slices);
    EXPECT_EQ(num_slices, 1) << "all-to-all";
  }
}

// The data can tell one order from another, or the test above would prove nothing.
TEST(PartialExchangeControl, AddingInRankOrderGivesOtherBits) {
  for (int64_t num_elements : {3 * 67, 16 * 128}) {
    const auto leaves = MakeLeaves(num_elements);
    EXPECT_FALSE(SameBits(InOrder(leaves), Tree(leaves, 0, kLeaves)));
  }
}

TEST(PartialExchangeAlone, HandsBackItsOwnMemory) {
  Backend backend = MakeReferenceBackend();
  auto group = MakeLocalGroup(1, absl::Seconds(1));
  PartialExchange exchange(*backend.device, *backend.ops, *group[0], 3, 4);
  const Tensor local = exchange.Local(3);
  const ConstTensor partials = *exchange.Exchange(3);
  EXPECT_EQ(partials.raw(), local.raw());
  EXPECT_EQ(partials.shape(), (Shape{1, 3, 4}));
}

TEST(PartialExchangeFailure, ReturnsTheGroupsStatus) {
  Backend backend = MakeReferenceBackend();
  auto group = MakeLocalGroup(2, absl::Seconds(1));
  const absl::Status reason = absl::CancelledError("over");
  group[1]->Abort(reason);
  for (int64_t gather_bytes : {0, 1 << 20}) {
    PartialExchange exchange(*backend.device, *backend.ops, *group[0], 3, 4, gather_bytes);
    exchange.Local(3);
    EXPECT_EQ(exchange.Exchange(3).status(), reason);
  }
}

}  // namespace
}  // namespace plumbline
