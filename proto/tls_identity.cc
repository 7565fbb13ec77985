#include "proto/tls_identity.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>

#include <fstream>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

template <typename T, void (*kFree)(T*)>
struct Free {
  void operator()(T* object) const { kFree(object); }
};
using Bio = std::unique_ptr<BIO, Free<BIO, BIO_free_all>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509, X509_free>>;
using Store = std::unique_ptr<X509_STORE, Free<X509_STORE, X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Free<X509_STORE_CTX, X509_STORE_CTX_free>>;

absl::Status Wrong(const std::string& path, const std::string& what) {
  ERR_clear_error();  // or the next user of the library would find ours
  return absl::InvalidArgumentError(absl::StrCat("TLS: ", path, what));
}

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad())
    return absl::NotFoundError(absl::StrCat("TLS: ", path, " cannot be read"));
  if (file.gcount() > static_cast<std::streamsize>(kMaxFileBytes)) {
    return Wrong(path, absl::StrCat(" has more than ", kMaxFileBytes, " bytes"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

Bio Reader(const std::string& pem) {
  return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

absl::StatusOr<std::vector<Certificate>> ParseCertificates(const std::string& path,
                                                           const std::string& pem) {
  std::vector<Certificate> certificates;
  const Bio reader = Reader(pem);
  while (X509* certificate = PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr))
    certificates.emplace_back(certificate);
  const unsigned long error = ERR_peek_last_error();
  if (certificates.empty() || ERR_GET_REASON(error) != PEM_R_NO_START_LINE) {
    return Wrong(path, " is no certificate in PEM form");
  }
  ERR_clear_error();
  return certificates;
}

absl::StatusOr<Key> ParseKey(const std::string& path, const std::string& pem) {
  const auto no_passphrase = [](char*, int, int, void*) {
    return -1;
  };  // the default asks at the terminal
  Key key(PEM_read_bio_PrivateKey(Reader(pem).get(), nullptr, no_passphrase, nullptr));
  if (key == nullptr) return Wrong(path, " is no private key in PEM form without a passphrase");
  return key;
}

// `parsed` is of the identity's certificate.
absl::Status CheckSigned(const TlsFiles& files, const std::vector<Certificate>& parsed,
                         const std::string& ca) {
  PL_ASSIGN_OR_RETURN(const auto authorities, ParseCertificates(files.ca, ca));
  const Store store(X509_STORE_new());
  for (const Certificate& authority : authorities)
    X509_STORE_add_cert(store.get(), authority.get());
  STACK_OF(X509)* between = sk_X509_new_null();
  for (size_t i = 1; i < parsed.size(); ++i) sk_X509_push(between, parsed[i].get());
  const StoreContext context(X509_STORE_CTX_new());
  X509_STORE_CTX_init(context.get(), store.get(), parsed[0].get(), between);
  const bool is_signed = X509_verify_cert(context.get()) == 1;
  sk_X509_free(between);
  if (is_signed) return absl::OkStatus();
  return Wrong(
      files.certificate,
      absl::StrCat(" does not come from the authority in ", files.ca, ": ",
                   X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get()))));
}

absl::StatusOr<TlsIdentity> Load(const TlsFiles& files, bool is_member) {
  TlsIdentity identity;
  if (!files.has_any()) return identity;
  if (files.certificate.empty() || files.key.empty() || (is_member && files.ca.empty())) {
    return absl::InvalidArgumentError(
        absl::StrCat("TLS: a certificate, its key", is_member ? " and an authority" : "",
                     " belong together; one of the files is not given"));
  }
  PL_ASSIGN_OR_RETURN(identity.certificate, ReadPem(files.certificate));
  PL_ASSIGN_OR_RETURN(identity.key, ReadPem(files.key));
  PL_ASSIGN_OR_RETURN(const auto certificates,
                      ParseCertificates(files.certificate, identity.certificate));
  PL_ASSIGN_OR_RETURN(const Key key, ParseKey(files.key, identity.key));
  X509* own = certificates[0].get();
  if (X509_check_private_key(own, key.get()) != 1) {
    return Wrong(files.key,
                 absl::StrCat(" does not belong to the certificate in ", files.certificate));
  }
  if (X509_cmp_current_time(X509_get0_notAfter(own)) < 0)
    return Wrong(files.certificate, " has expired");
  if (X509_cmp_current_time(X509_get0_notBefore(own)) > 0)
    return Wrong(files.certificate, " is not valid yet");
  if (files.ca.empty()) return identity;
  PL_ASSIGN_OR_RETURN(identity.ca, ReadPem(files.ca));
  PL_RETURN_IF_ERROR(ParseCertificates(files.ca, identity.ca).status());
  if (is_member) PL_RETURN_IF_ERROR(CheckSigned(files, certificates, identity.ca));
  return identity;
}

}  // namespace

absl::StatusOr<TlsIdentity> LoadTlsIdentity(const TlsFiles& files) { return Load(files, false); }

absl::StatusOr<TlsIdentity> LoadMemberIdentity(const TlsFiles& files) { return Load(files, true); }

}  // namespace plumbline
