#include "cli/tls_flags.h"

#include <CLI/CLI.hpp>

namespace plumbline {

void AddServerTlsFlags(CLI::App& command, TlsFiles& files) {
  CLI::Option* certificate =
      command.add_option("--tls-cert", files.certificate,
                         "PEM file: serve HTTPS and gRPC over TLS with this certificate");
  CLI::Option* key =
      command.add_option("--tls-key", files.key, "PEM file: the private key of --tls-cert");
  certificate->needs(key);
  key->needs(certificate);
  command
      .add_option("--tls-client-ca", files.ca,
                  "PEM file: clients must have a certificate that this authority signed")
      ->needs(certificate);
}

void AddClusterTlsFlags(CLI::App& command, TlsFiles& files) {
  CLI::Option* certificate =
      command.add_option("--cluster-cert", files.certificate,
                         "PEM file: this process's certificate between coordinator and workers, "
                         "which then talk over TLS");
  CLI::Option* key =
      command.add_option("--cluster-key", files.key, "PEM file: the private key of --cluster-cert");
  CLI::Option* ca =
      command.add_option("--cluster-ca", files.ca,
                         "PEM file: the authority that signed every certificate of the cluster");
  certificate->needs(key)->needs(ca);
  key->needs(certificate);
  ca->needs(certificate);
}

}  // namespace plumbline
