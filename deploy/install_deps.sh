#!/usr/bin/env bash
# Installs the Debian 12 packages that building and running need. Run as root, or with sudo at hand.
set -euo pipefail
sudo=""
[ "$(id -u)" -eq 0 ] || sudo=sudo
packages=(
  g++ cmake ninja-build ccache pkg-config git ca-certificates openssl python3 python3-venv iproute2
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libabsl-dev libgloo-dev
  libboost-dev libboost-context-dev libssl-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev prometheus-cpp-dev
  libsqlite3-dev libxxhash-dev libcli11-dev libspdlog-dev libgtest-dev libgmock-dev libbenchmark-dev
)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
  echo "all packages are installed"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends "${missing[@]}"
