// What gRPC servers and channels of ours show each other: nothing, or the certificates of a
// TlsIdentity, at least TLS 1.2.
#pragma once

#include <memory>

#include "proto/tls_identity.h"

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace plumbline {

// Clients must have a certificate of `identity.ca` when there is one.
std::shared_ptr<grpc::ServerCredentials> ServerCredentialsOf(const TlsIdentity& identity);

// The server's certificate must come from `identity.ca` and name the host that is dialed.
std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const TlsIdentity& identity);

}  // namespace plumbline
