// SHA-256 of bytes, in lower-case hex.
#pragma once

#include <string>
#include <string_view>

namespace plumbline {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(std::string_view bytes);
  std::string HexDigest();  // once

 private:
  void* context_;
};

}  // namespace plumbline
