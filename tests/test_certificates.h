// Certificates made for one test program, in a folder that goes with it.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "proto/tls_identity.h"

namespace plumbline {

class TestCertificates {
 public:
  static const TestCertificates& Get() {
    static const TestCertificates certificates;
    return certificates;
  }
  ~TestCertificates() { std::filesystem::remove_all(folder_); }

  // Of the names in tests/make_certificates.sh: ca.pem, say.
  std::string Path(const std::string& file) const { return (folder_ / file).string(); }
  std::string Read(const std::string& file) const {
    std::ifstream stream(Path(file));
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  // `name` with its key; `authority` may be empty.
  TlsFiles Files(const std::string& name, const std::string& authority) const {
    return {.certificate = Path(name + ".pem"),
            .key = Path(name + ".key"),
            .ca = authority.empty() ? "" : Path(authority + ".pem")};
  }
  TlsIdentity Identity(const std::string& name, const std::string& authority) const {
    return {.certificate = name.empty() ? "" : Read(name + ".pem"),
            .key = name.empty() ? "" : Read(name + ".key"),
            .ca = authority.empty() ? "" : Read(authority + ".pem")};
  }

 private:
  TestCertificates()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ("certificates." + std::to_string(::getpid()))) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    const std::string command = PLUMBLINE_SOURCE_DIR "/tests/make_certificates.sh " +
                                folder_.string() + " >" + Path("log") + " 2>&1";
    EXPECT_EQ(std::system(command.c_str()), 0) << Read("log");
  }

  const std::filesystem::path folder_;
};

}  // namespace plumbline
