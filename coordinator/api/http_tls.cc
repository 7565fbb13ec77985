#include "coordinator/api/http_tls.h"

#include <openssl/ssl.h>

#include <boost/asio/buffer.hpp>

#include "absl/strings/str_cat.h"

namespace plumbline {
namespace asio = boost::asio;
using asio::ssl::context;

absl::StatusOr<std::unique_ptr<context>> MakeTlsContext(const TlsIdentity& identity) {
  if (!identity.is_set()) return nullptr;
  auto tls = std::make_unique<context>(context::tls_server);
  SSL_CTX* const native = tls->native_handle();
  SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION);
  SSL_CTX_set_options(
      native, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  // Without a context's name OpenSSL takes no session up again whose client had a certificate.
  constexpr unsigned char kSessions[] = "plumbline";
  SSL_CTX_set_session_id_context(native, kSessions, sizeof(kSessions));
  boost::system::error_code error;
  tls->use_certificate_chain(asio::buffer(identity.certificate), error);
  if (!error) tls->use_private_key(asio::buffer(identity.key), context::pem, error);
  if (!error && !identity.ca.empty()) {
    tls->add_certificate_authority(asio::buffer(identity.ca), error);
    tls->set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
  }
  if (error) return absl::InvalidArgumentError(absl::StrCat("TLS: ", error.message()));
  return tls;
}

}  // namespace plumbline
