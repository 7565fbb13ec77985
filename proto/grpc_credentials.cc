#include "proto/grpc_credentials.h"

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

namespace plumbline {

std::shared_ptr<grpc::ServerCredentials> ServerCredentialsOf(const TlsIdentity& identity) {
  if (!identity.is_set()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      identity.ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                          : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_key_cert_pairs.push_back({identity.key, identity.certificate});
  options.pem_root_certs = identity.ca;
  return grpc::SslServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const TlsIdentity& identity) {
  if (!identity.is_set()) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials({.pem_root_certs = identity.ca,
                               .pem_private_key = identity.key,
                               .pem_cert_chain = identity.certificate});
}

}  // namespace plumbline
