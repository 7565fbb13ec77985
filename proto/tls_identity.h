// TlsIdentity: a certificate, its private key, and the authority that the other side's certificate
// must come from. Read from PEM files and checked at start, so that what is wrong with them is one
// clear error and not a failing handshake.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace plumbline {

// Paths. All empty: no TLS. `ca` may be empty where the other side needs no certificate.
struct TlsFiles {
  std::string certificate;  // first the own certificate, then those between it and its authority
  std::string key;          // not encrypted
  std::string ca;

  bool has_any() const { return !certificate.empty() || !key.empty() || !ca.empty(); }
};

// The files' contents. `key` is a secret: never to be logged.
struct TlsIdentity {
  std::string certificate, key, ca;  // PEM; an empty certificate: no TLS

  bool is_set() const { return !certificate.empty(); }
};

// NOT_FOUND: a file that cannot be read; INVALID_ARGUMENT: it is no PEM of its kind, the
// certificate is not valid now, or the key is encrypted or belongs to another certificate. The
// error names the file. No files: an identity that is not set.
absl::StatusOr<TlsIdentity> LoadTlsIdentity(const TlsFiles& files);

// The same for a member of a group whose certificates all come from `ca`: all three files or none,
// and the own certificate is one that the others will accept.
absl::StatusOr<TlsIdentity> LoadMemberIdentity(const TlsFiles& files);

}  // namespace plumbline
