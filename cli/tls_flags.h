// The flags that name certificates: of the server towards its clients, of a process towards its
// cluster.
#pragma once

#include "proto/tls_identity.h"

namespace CLI {
class App;
}

namespace plumbline {

// --tls-cert, --tls-key, --tls-client-ca. Both `files` outlive the command.
void AddServerTlsFlags(CLI::App& command, TlsFiles& files);

// --cluster-cert, --cluster-key, --cluster-ca: all or none.
void AddClusterTlsFlags(CLI::App& command, TlsFiles& files);

}  // namespace plumbline
