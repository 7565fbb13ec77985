#!/usr/bin/env bash
# The main job on the demo model, from nothing: installs, builds, starts a coordinator and four worker processes (TP 2 x
# PP 2) on this host, asks questions over HTTP and gRPC, and shows that the logits are those of a single process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
model=deploy/demo_model/model
http=127.0.0.1:18080
grpc=127.0.0.1:15051
work=$(mktemp -d)
server=""
cleanup() {
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    kill -TERM "$server" && wait "$server" || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT

echo "== installing and building"
deploy/install_deps.sh
venv=build/venv
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import grpc_tools, grpc_reflection, grpc_health' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet openai grpcio grpcio-tools grpcio-reflection grpcio-health-checking
fi
cmake --preset release > "$work/configure.log" || { cat "$work/configure.log"; exit 1; }
cmake --build --preset release --target plumbline
plumbline=build/release/plumbline

echo "== starting a coordinator and four workers: tensor parallel 2 x pipeline parallel 2"
"$plumbline" serve --model "$model" --served-model-name demo --tp 2 --pp 2 --device cpu --http "$http" --grpc "$grpc" \
  > "$work/serve.out" 2> "$work/serve.err" &
server=$!
for _ in $(seq 600); do
  grep -q 'is ready' "$work/serve.out" && break
  kill -0 "$server" 2>/dev/null || { cat "$work/serve.err" >&2; exit 1; }
  sleep 0.1
done
cat "$work/serve.out"
pgrep -P "$server" -a | sed 's/^/  worker process /'

echo "== three questions over HTTP (the last one streamed), one over gRPC"
"$venv/bin/python" deploy/demo_client.py --http "http://$http" --grpc "$grpc" --model demo

echo "== the same bits at any shape"
"$venv/bin/python" deploy/demo_tokens.py deploy/demo_model/expected.json "$work/tokens.safetensors"
"$plumbline" logits --model "$model" --tokens "$work/tokens.safetensors" > "$work/single"
"$plumbline" logits --model "$model" --tokens "$work/tokens.safetensors" --tp 2 --pp 2 --transport processes > "$work/cluster"
printf 'one process           %s\nfour worker processes %s\n' "$(tail -n1 "$work/single")" "$(tail -n1 "$work/cluster")"
cmp "$work/single" "$work/cluster" && echo "equal"

kill -TERM "$server"
wait "$server"
server=""
if pgrep -f "$plumbline (serve|worker)" > /dev/null; then
  echo "processes were left running" >&2
  exit 1
fi
echo "== done; nothing is left running"
