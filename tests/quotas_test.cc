// Quotas on a clock that stands still unless it is moved: what a key gets over time, and what it is refused.
#include "coordinator/security/quotas.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

namespace plumbline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ticket = Quotas::Ticket;

class QuotasTest : public ::testing::Test {
 protected:
  // The seconds of a refusal; 0 when there is none.
  static int64_t RetryAfter(const absl::Status& status, QuotaKind kind) {
    if (status.ok()) return 0;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    const auto refusal = QuotaRefusalOf(status);
    if (!refusal) return -1;
    EXPECT_EQ(refusal->kind, kind);
    return refusal->retry_after_seconds;
  }
  static int64_t TokensRetry(const absl::Status& status) { return RetryAfter(status, QuotaKind::kTokens); }
  static int64_t RequestsRetry(const absl::Status& status) { return RetryAfter(status, QuotaKind::kRequests); }

  // Begins a request, or says when to try again.
  int64_t Begin(int64_t num_tokens, const QuotaLimits& limits, int64_t key = 1) {
    absl::StatusOr<Ticket> ticket = quotas_.Admit(key, limits);
    if (!ticket.ok()) return TokensRetry(ticket.status());
    return TokensRetry(ticket->Reserve(num_tokens));
  }

  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  Quotas quotas_{[this] { return now_; }};
};

TEST_F(QuotasTest, ConcurrentRequestsEndWithTheirTickets) {
  const QuotaLimits limits = {.max_concurrent = 2};
  std::optional<Ticket> first = *quotas_.Admit(1, limits);
  Ticket second = *quotas_.Admit(1, limits);
  const absl::Status refused = quotas_.Admit(1, limits).status();
  EXPECT_EQ(RequestsRetry(refused), 1);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2 concurrent requests"));
  EXPECT_TRUE(quotas_.Admit(2, limits).ok());  // another key, and the ticket is dropped at once
  Ticket moved = std::move(*first);
  first.reset();  // an empty hand
  EXPECT_FALSE(quotas_.Admit(1, limits).ok());
  moved.Release();
  moved.Release();
  second = *quotas_.Admit(1, limits);  // two under way, then the old second's place is free
  EXPECT_TRUE(quotas_.Admit(1, limits).ok());
  second = Ticket();
  const QuotaLimits one = {.max_concurrent = 1};
  EXPECT_TRUE(quotas_.Admit(1, one).ok());
  EXPECT_THAT(quotas_.num_refused(), ElementsAre(0, 2));
}

TEST_F(QuotasTest, AMinutesTokensCanBeUsedAtOnceThenTheRateCounts) {
  const QuotaLimits limits = {.tokens_per_minute = 120};  // two per second
  EXPECT_EQ(Begin(100, limits), 0);
  EXPECT_EQ(Begin(20, limits), 0);
  EXPECT_EQ(Begin(1, limits), 1);
  EXPECT_EQ(Begin(1, limits, 2), 0);  // keys do not share
  now_ += absl::Seconds(5);           // ten tokens
  EXPECT_EQ(Begin(31, limits), 11);   // 21 are missing: 10.5 s
  now_ += absl::Milliseconds(10'499);
  EXPECT_EQ(Begin(31, limits), 1);
  now_ += absl::Milliseconds(1);
  EXPECT_EQ(Begin(31, limits), 0);
  now_ += absl::Hours(100'000);  // no more than a minute's worth is kept
  EXPECT_EQ(Begin(121, limits), 0);
  EXPECT_EQ(Begin(1, limits), 1);
}

TEST_F(QuotasTest, GeneratedTokensMakeDebtThatIsPaidBeforeTheNextRequest) {
  const QuotaLimits limits = {.tokens_per_minute = 60};
  Ticket ticket = *quotas_.Admit(1, limits);
  ASSERT_TRUE(ticket.Reserve(10).ok());
  for (int i = 0; i < 80; ++i) ticket.Charge(1);  // 30 more than there are: it goes on
  ticket.Release();
  EXPECT_EQ(Begin(1, limits), 31);
  now_ += absl::Seconds(30);
  EXPECT_EQ(Begin(1, limits), 1);
  now_ += absl::Seconds(1);
  EXPECT_EQ(Begin(1, limits), 0);
}

// A bucket that was full all the while has nothing extra to pay with.
TEST_F(QuotasTest, WhatFlowedOverDoesNotPayForLaterTokens) {
  const QuotaLimits limits = {.tokens_per_minute = 60};
  Ticket ticket = *quotas_.Admit(1, limits);
  now_ += absl::Seconds(60);
  ticket.Charge(60);
  EXPECT_EQ(Begin(1, limits), 1);
}

TEST_F(QuotasTest, APromptOfMoreThanAMinuteNeedsAFullBucket) {
  const QuotaLimits limits = {.tokens_per_minute = 60};
  EXPECT_EQ(Begin(1, limits), 0);
  EXPECT_EQ(Begin(150, limits), 1);
  now_ += absl::Seconds(1);
  EXPECT_EQ(Begin(150, limits), 0);
  EXPECT_EQ(Begin(1, limits), 91);
}

TEST_F(QuotasTest, WhatWasRefusedElsewhereIsGivenBack) {
  const QuotaLimits limits = {.tokens_per_minute = 60, .max_concurrent = 1};
  for (int i = 0; i < 5; ++i) {
    Ticket ticket = *quotas_.Admit(1, limits);
    ASSERT_TRUE(ticket.Reserve(50).ok()) << i;
    ticket.Refund();
  }
  EXPECT_EQ(Begin(60, limits), 0);
}

TEST_F(QuotasTest, LimitsMayChangeMeanwhile) {
  Ticket before = *quotas_.Admit(1, {});  // counted also while there is no limit
  ASSERT_TRUE(before.Reserve(1'000'000).ok());
  EXPECT_EQ(RequestsRetry(quotas_.Admit(1, {.max_concurrent = 1}).status()), 1);
  EXPECT_EQ(Begin(60, {.tokens_per_minute = 60}), 0);
  EXPECT_EQ(Begin(1, {.tokens_per_minute = 60}), 1);
  EXPECT_EQ(Begin(1, {}), 0);                            // no limit any more
  EXPECT_EQ(Begin(100, {.tokens_per_minute = 100}), 0);  // a new bucket is full
  now_ += absl::Minutes(1);
  EXPECT_EQ(Begin(1, {.tokens_per_minute = 10}), 0);  // a smaller one keeps what fits: 10
  EXPECT_EQ(Begin(10, {.tokens_per_minute = 10}), 6);
}

TEST_F(QuotasTest, AClockThatIsSetBackNeitherPaysNorStops) {
  const QuotaLimits limits = {.tokens_per_minute = 60};
  EXPECT_EQ(Begin(60, limits), 0);
  now_ -= absl::Hours(5);
  EXPECT_EQ(Begin(1, limits), 1);
  now_ += absl::Seconds(1);
  EXPECT_EQ(Begin(1, limits), 0);
}

TEST_F(QuotasTest, TheLargestRatesFit) {
  const QuotaLimits limits = {.tokens_per_minute = kMaxTokensPerMinute};
  EXPECT_EQ(Begin(kMaxTokensPerMinute, limits), 0);
  now_ += absl::Seconds(30);
  EXPECT_EQ(Begin(kMaxTokensPerMinute / 2 + 1, limits), 1);
  EXPECT_EQ(Begin(kMaxTokensPerMinute / 2, limits), 0);
  now_ += absl::Hours(1'000'000);
  EXPECT_EQ(Begin(kMaxTokensPerMinute, limits), 0);
}

// Whatever the sizes, what was admitted within a time is at most the rate times it, a full bucket, and the debt that
// the last request may leave. And a client that waits as long as it is told is not refused again.
TEST_F(QuotasTest, OverTimeAKeyGetsItsRate) {
  std::mt19937 random(7);
  for (const int64_t rate : {int64_t{7}, int64_t{100}, int64_t{6'000}}) {
    Quotas quotas([this] { return now_; });
    const QuotaLimits limits = {.tokens_per_minute = rate};
    const absl::Time begin = now_;
    int64_t used = 0;
    for (int i = 0; i < 500; ++i) {
      absl::StatusOr<Ticket> ticket = quotas.Admit(1, limits);
      if (!ticket.ok()) {
        now_ += absl::Seconds(TokensRetry(ticket.status()));
        ticket = quotas.Admit(1, limits);
      }
      ASSERT_TRUE(ticket.ok());
      const auto prompt = static_cast<int64_t>(1 + random() % 50);
      if (const int64_t seconds = TokensRetry(ticket->Reserve(prompt)); seconds > 0) {
        now_ += absl::Seconds(seconds);
        ASSERT_TRUE(ticket->Reserve(prompt).ok());
      }
      const auto generated = static_cast<int64_t>(random() % 50);
      ticket->Charge(generated);
      used += prompt + generated;
    }
    const double minutes = absl::ToDoubleMinutes(now_ - begin);
    EXPECT_LE(static_cast<double>(used), static_cast<double>(rate) * (minutes + 1) + 100);
    EXPECT_GE(static_cast<double>(used), 0.9 * static_cast<double>(rate) * minutes);  // or it would starve
  }
}

TEST_F(QuotasTest, TicketsMayOutliveTheQuotas) {
  auto quotas = std::make_unique<Quotas>();
  Ticket ticket = *quotas->Admit(1, {.tokens_per_minute = 10});
  quotas.reset();
  ticket.Charge(1);
}

TEST_F(QuotasTest, ThreadsNeverExceedTheLimit) {
  const QuotaLimits limits = {.max_concurrent = 3};
  std::atomic<int> num_running = 0, most = 0, num_admitted = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 2000; ++j) {
        const absl::StatusOr<Ticket> ticket = quotas_.Admit(1, limits);
        if (!ticket.ok()) continue;
        ++num_admitted;
        int now = ++num_running;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) continue;
        std::this_thread::yield();
        --num_running;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 3);
  EXPECT_GT(num_admitted, 0);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(quotas_.Admit(1, limits).ok());
}

}  // namespace
}  // namespace plumbline
