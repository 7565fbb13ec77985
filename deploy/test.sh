#!/usr/bin/env bash
# Installs what is needed, builds, and runs every test; the last lines are ctest's summary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
deploy/install_deps.sh
# Python packages for the tests with stock clients, in an environment of their own.
venv=build/venv
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import openai, grpc_tools, grpc_reflection, grpc_health' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet openai grpcio grpcio-tools grpcio-reflection grpcio-health-checking
fi
cmake --preset release
cmake --build --preset release
ctest --preset release
