// TLS of an HttpServer's connections: at least version 1.2. Internal to the server.
#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>

#include "absl/status/statusor.h"
#include "proto/tls_identity.h"

namespace plumbline {

// Null when the identity is not set. Clients must have a certificate of `identity.ca` when there is
// one. INVALID_ARGUMENT: what the library does not take, a key that is too short, say.
absl::StatusOr<std::unique_ptr<boost::asio::ssl::context>> MakeTlsContext(
    const TlsIdentity& identity);

}  // namespace plumbline
