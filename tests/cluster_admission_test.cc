// Who gets into a cluster of worker processes: with its token, build, rank and certificate; everybody else is told why not.
#include "tests/cluster_fixture.h"
#include "tests/test_certificates.h"

namespace plumbline {
namespace {

TEST(ClusterTest, StrangersAndDoublesAreRefusedWithALine) {
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  const std::string token = options.join_token;
  Events events;
  auto cluster = Cluster::Create(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  (*cluster)->Start([&](RunnerEvent event) { events.Push(std::move(event)); });
  const std::vector<std::string> program = WorkerProgram((*cluster)->worker_address());

  Process wrong_token(program, std::string(token.size(), '0'));
  EXPECT_EQ(wrong_token.WaitForEnd(), 1);
  EXPECT_THAT(wrong_token.output(), HasSubstr("the join token is wrong"));
  Process wrong_build(With(program, {"--build", "other"}), token);
  EXPECT_EQ(wrong_build.WaitForEnd(), 1);
  EXPECT_THAT(wrong_build.output(), HasSubstr("is build other, the coordinator is test"));
  Process no_such_rank(With(program, {"--rank", "2"}), token);
  EXPECT_EQ(no_such_rank.WaitForEnd(), 1);
  EXPECT_THAT(no_such_rank.output(), HasSubstr("wants rank 2; there are ranks 0 to 1"));

  Process first(With(program, {"--rank", "1"}), token);
  Process second(With(program, {"--rank", "0"}), token);
  EXPECT_EQ(events.Next<RunnerReady>().epoch, 1u);
  Process doubled(With(program, {"--rank", "1"}), token);
  EXPECT_EQ(doubled.WaitForEnd(), 1);
  EXPECT_THAT(doubled.output(), HasSubstr("rank 1 is already held by"));
  EXPECT_THAT(doubled.output(), HasSubstr(absl::StrCat(first.pid())));
  Process surplus(program, token);
  EXPECT_EQ(surplus.WaitForEnd(), 1);
  EXPECT_THAT(surplus.output(), HasSubstr("all 2 ranks are held"));

  // None of them disturbed the run; when it stops, its workers go in good order.
  EXPECT_TRUE((*cluster)->Snapshot().ready);
  (*cluster)->Stop();
  EXPECT_EQ(first.WaitForEnd(absl::Seconds(5)), 0) << first.output();
  EXPECT_EQ(second.WaitForEnd(absl::Seconds(5)), 0) << second.output();
  EXPECT_EQ(first.output(), "");
}

TEST(ClusterTest, OnlyWorkersWithACertificateOfItsAuthorityAndTheTokenGetIn) {
  const TestCertificates& certificates = TestCertificates::Get();
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  options.tls = certificates.Identity("server", "ca");
  const std::string token = options.join_token;
  Events events;
  auto cluster = Cluster::Create(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  (*cluster)->Start([&](RunnerEvent event) { events.Push(std::move(event)); });
  const std::vector<std::string> plain = WorkerProgram((*cluster)->worker_address());
  const auto with = [&](const std::string& name, const std::string& authority) {
    const TlsFiles files = certificates.Files(name, authority);
    return With(plain, {"--cluster-cert", files.certificate, "--cluster-key", files.key, "--cluster-ca", files.ca});
  };

  Process no_certificate(plain, token);
  EXPECT_EQ(no_certificate.WaitForEnd(), 1);
  EXPECT_THAT(no_certificate.output(), HasSubstr("does it want a certificate (--cluster-cert"));
  Process of_another_authority(with("stranger", "ca"), token);
  EXPECT_EQ(of_another_authority.WaitForEnd(), 1);
  EXPECT_THAT(of_another_authority.output(), HasSubstr("refuses this worker's certificate"));
  Process that_trusts_another(with("client", "other_ca"), token);
  EXPECT_EQ(that_trusts_another.WaitForEnd(), 1);
  EXPECT_THAT(that_trusts_another.output(), HasSubstr("certificate verify failed"));
  Process with_another_token(with("client", "ca"), std::string(token.size(), '0'));
  EXPECT_EQ(with_another_token.WaitForEnd(), 1);
  EXPECT_THAT(with_another_token.output(), HasSubstr("the join token is wrong"));

  Process first(with("client", "ca"), token), second(with("server", "ca"), token);
  EXPECT_EQ(events.Next<RunnerReady>().epoch, 1u);
  (*cluster)->Stop();
  EXPECT_EQ(first.WaitForEnd(absl::Seconds(5)), 0) << first.output();
  EXPECT_EQ(second.WaitForEnd(absl::Seconds(5)), 0) << second.output();
}

TEST(ClusterTest, AWorkerTellsACoordinatorOfAnotherHostOrWithoutTls) {
  const TestCertificates& certificates = TestCertificates::Get();
  const TlsFiles files = certificates.Files("client", "ca");
  for (const char* name : {"elsewhere", ""}) {
    ClusterOptions options = DemoOptions({});
    options.tls = certificates.Identity(name, *name == '\0' ? "" : "ca");
    const std::string token = options.join_token;
    auto cluster = Cluster::Create(std::move(options));
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    Process worker(With(WorkerProgram((*cluster)->worker_address()),
                        {"--cluster-cert", files.certificate, "--cluster-key", files.key, "--cluster-ca", files.ca}),
                   token);
    EXPECT_EQ(worker.WaitForEnd(), 1);
    EXPECT_THAT(worker.output(), HasSubstr(*name == '\0' ? "wrong version number" : "127.0.0.1 is not in peer certificate"));
  }
}

TEST(ClusterTest, AListeningAddressInUseIsTold) {
  auto first = Cluster::Create(DemoOptions({}));
  ASSERT_TRUE(first.ok());
  ClusterOptions options = DemoOptions({});
  options.worker_listen = (*first)->worker_address();
  const auto second = Cluster::Create(std::move(options));
  ASSERT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_THAT(second.status().message(), HasSubstr((*first)->worker_address()));
}

}  // namespace
}  // namespace plumbline
