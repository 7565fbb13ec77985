// What is wrong with a certificate is told when its file is read.
#include "proto/tls_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/test_certificates.h"

namespace plumbline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class TlsIdentityTest : public ::testing::Test {
 protected:
  // The error's text; empty when there is none.
  static std::string ErrorOf(const absl::StatusOr<TlsIdentity>& identity) {
    return std::string(identity.status().message());
  }
  std::string Path(const std::string& file) const { return certificates_.Path(file); }
  TlsFiles Files(const std::string& certificate, const std::string& key,
                 const std::string& ca) const {
    return {.certificate = Path(certificate), .key = Path(key), .ca = ca.empty() ? "" : Path(ca)};
  }

  const TestCertificates& certificates_ = TestCertificates::Get();
};

TEST_F(TlsIdentityTest, ReadsWhatIsRight) {
  const auto identity = LoadTlsIdentity(Files("server.pem", "server.key", "ca.pem"));
  ASSERT_TRUE(identity.ok()) << identity.status();
  EXPECT_EQ(identity->certificate, certificates_.Read("server.pem"));
  EXPECT_EQ(identity->key, certificates_.Read("server.key"));
  EXPECT_EQ(identity->ca, certificates_.Read("ca.pem"));
  EXPECT_TRUE(LoadTlsIdentity(Files("server.pem", "server.key", "")).ok());
  EXPECT_TRUE(LoadTlsIdentity(Files("stranger.pem", "stranger.key", "ca.pem"))
                  .ok());  // clients come from elsewhere
  EXPECT_TRUE(LoadMemberIdentity(Files("server.pem", "server.key", "ca.pem")).ok());
  const auto none = LoadMemberIdentity({});
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->is_set());
}

TEST_F(TlsIdentityTest, NamesTheFileThatIsWrong) {
  const auto error = [this](const std::string& certificate, const std::string& key,
                            const std::string& ca) {
    return ErrorOf(LoadTlsIdentity(Files(certificate, key, ca)));
  };
  EXPECT_THAT(error("none.pem", "server.key", ""),
              AllOf(HasSubstr(Path("none.pem")), HasSubstr("cannot be read")));
  EXPECT_THAT(error("server.pem", "none.key", ""),
              AllOf(HasSubstr(Path("none.key")), HasSubstr("cannot be read")));
  EXPECT_THAT(error("server.pem", "server.key", "none.pem"),
              AllOf(HasSubstr(Path("none.pem")), HasSubstr("cannot be read")));
  EXPECT_THAT(error(".", "server.key", ""), HasSubstr("cannot be read"));
  EXPECT_THAT(
      error("server.pem", "client.key", ""),
      AllOf(HasSubstr(Path("client.key") + " does not belong to"), HasSubstr(Path("server.pem"))));
  EXPECT_THAT(error("server.key", "server.key", ""),
              HasSubstr(Path("server.key") + " is no certificate"));
  EXPECT_THAT(error("server.pem", "server.pem", ""),
              HasSubstr(Path("server.pem") + " is no private key"));
  EXPECT_THAT(error("server.pem", "server.key", "ca.key"),
              HasSubstr(Path("ca.key") + " is no certificate"));
  EXPECT_THAT(error("server.pem", "locked.key", ""), HasSubstr("without a passphrase"));
  EXPECT_THAT(error("expired.pem", "expired.key", ""),
              HasSubstr(Path("expired.pem") + " has expired"));
  EXPECT_THAT(ErrorOf(LoadTlsIdentity({.certificate = "/dev/zero", .key = Path("server.key")})),
              HasSubstr("more than 1048576 bytes"));
  EXPECT_THAT(ErrorOf(LoadTlsIdentity({.certificate = Path("server.pem")})),
              HasSubstr("belong together"));
}

TEST_F(TlsIdentityTest, MembersComeFromTheirAuthority) {
  EXPECT_THAT(ErrorOf(LoadMemberIdentity(Files("stranger.pem", "stranger.key", "ca.pem"))),
              AllOf(HasSubstr(Path("stranger.pem")),
                    HasSubstr("does not come from the authority in " + Path("ca.pem"))));
  EXPECT_THAT(ErrorOf(LoadMemberIdentity(Files("server.pem", "server.key", ""))),
              HasSubstr("belong together"));
}

}  // namespace
}  // namespace plumbline
