// Who gets a TLS connection to the HTTP server, and that those who do not leave it unharmed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "coordinator/api/http_server.h"
#include "tests/raw_client.h"
#include "tests/test_certificates.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class Hello : public HttpHandler {
 public:
  void Handle(HttpRequest, std::shared_ptr<HttpResponder> responder) override {
    responder->Respond({.body = "hello"});
  }
  HttpResponse ErrorResponse(int status, const std::string& message) override {
    return {.status = status, .body = message};
  }
};

class HttpTlsTest : public ::testing::Test {
 protected:
  void Start(const std::string& client_authority, absl::Duration read_timeout = absl::Seconds(60)) {
    server_ = *HttpServer::Start(
        {.tls = certificates_.Identity("server", client_authority), .read_timeout = read_timeout},
        &handler_);
  }
  // A client that trusts `ca`; its certificate's name may be empty.
  ClientTls Client(const std::string& ca, const std::string& name) {
    return ClientTls(certificates_.Path(ca + ".pem"),
                     name.empty() ? "" : certificates_.Path(name + ".pem"),
                     certificates_.Path(name + ".key"));
  }
  HttpReply Get(const ClientTls& tls) { return Fetch(server_->port(), "GET", "/", "", "", &tls); }

  const TestCertificates& certificates_ = TestCertificates::Get();
  Hello handler_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpTlsTest, AClientThatTrustsAnotherAuthorityGoesAway) {
  Start("");
  const ClientTls mistaken = Client("other_ca", ""), right = Client("ca", "");
  const RawClient client(server_->port(), &mistaken);
  EXPECT_FALSE(client.connected());
  EXPECT_EQ(client.handshake_error(), "certificate verify failed");
  EXPECT_EQ(Get(right).body, "hello");
}

TEST_F(HttpTlsTest, PlainHttpAndNoiseAreRefusedWithoutHarm) {
  Start("");
  for (const std::string& noise : {std::string("GET / HTTP/1.1\r\n\r\n"),
                                   std::string("\x16\x03\x01\xff\xff", 5) + std::string(70000, 'x'),
                                   std::string(1 << 20, '\0')}) {
    RawClient plain(server_->port());
    plain.Send(noise);
    EXPECT_THAT(plain.ReadAll(), ::testing::Not(HasSubstr("hello")));
  }
  EXPECT_EQ(Get(Client("ca", "")).body, "hello");
}

TEST_F(HttpTlsTest, WhoeverBeginsNoHandshakeIsDropped) {
  Start("", absl::Milliseconds(200));
  RawClient silent(server_->port());
  const absl::Time begun = absl::Now();
  EXPECT_EQ(silent.ReadAll(), "");
  EXPECT_LT(absl::Now() - begun, absl::Seconds(3));
}

TEST_F(HttpTlsTest, VersionsBefore12AreRefused) {
  Start("");
  const ClientTls old = Client("ca", ""), oldest_allowed = Client("ca", "");
  SSL_CTX_set_security_level(old.context(), 0);  // or the client would not even ask
  SSL_CTX_set_min_proto_version(old.context(), TLS1_VERSION);
  SSL_CTX_set_max_proto_version(old.context(), TLS1_1_VERSION);
  SSL_CTX_set_max_proto_version(oldest_allowed.context(), TLS1_2_VERSION);
  EXPECT_THAT(RawClient(server_->port(), &old).handshake_error(), HasSubstr("protocol version"));
  EXPECT_EQ(Get(oldest_allowed).body, "hello");
}

TEST_F(HttpTlsTest, ClientsNeedACertificateOfTheAuthorityWhenThereIsOne) {
  Start("ca");
  EXPECT_EQ(Get(Client("ca", "client")).body, "hello");
  EXPECT_EQ(Get(Client("ca", "")).status, 0);
  EXPECT_EQ(Get(Client("ca", "stranger")).status, 0);
  const ClientTls client = Client("ca", "client");
  SSL_CTX_set_max_proto_version(client.context(), TLS1_2_VERSION);
  EXPECT_EQ(Get(client).body, "hello");
}

TEST_F(HttpTlsTest, AClientWithACertificateTakesItsSessionUpAgain) {
  Start("ca");
  const ClientTls client = Client("ca", "client");
  SSL_CTX_set_max_proto_version(client.context(),
                                TLS1_2_VERSION);  // the session is there after the handshake
  RawClient first(server_->port(), &client);
  RawClient second(server_->port(), &client, SSL_get0_session(first.ssl()));
  ASSERT_TRUE(second.connected()) << second.handshake_error();
  EXPECT_EQ(SSL_session_reused(second.ssl()), 1);
  second.Send("GET / HTTP/1.1\r\n\r\n");
  EXPECT_THAT(second.ReadUntil("hello"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpTlsTest, AServerDoesNotStartWithWhatIsNoCertificate) {
  TlsIdentity wrong = certificates_.Identity("server", "");
  wrong.key = certificates_.Read("client.key");
  const auto server = HttpServer::Start({.tls = wrong}, &handler_);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace plumbline
