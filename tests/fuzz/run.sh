#!/usr/bin/env bash
# Runs every fuzzer, or the named ones, for SECONDS each, one after another:
#   tests/fuzz/run.sh SECONDS [TARGET...]
# What is new to them is kept in build/fuzz/found/TARGET; what fails lies in build/fuzz/failed, and the exit code is 1.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ $# -ge 1 ] || { echo "usage: tests/fuzz/run.sh SECONDS [TARGET...]" >&2; exit 2; }
seconds=$1
shift
[ $# -gt 0 ] || set -- chat_template http model_config request_body safetensors step tokenizer
mkdir -p build/fuzz/failed
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
failures=0
for target in "$@"; do
  found=build/fuzz/found/$target
  mkdir -p "$found"
  dictionary=tests/fuzz/$target.dict
  echo "== $target"
  "build/fuzz/tests/fuzz/${target}_fuzz" "$found" "tests/fuzz/corpus/$target" \
    $([ -f "$dictionary" ] && echo "-dict=$dictionary") -artifact_prefix="build/fuzz/failed/$target-" \
    -max_total_time="$seconds" -timeout=300 -report_slow_units=1 -rss_limit_mb=2048 -malloc_limit_mb=256 -max_len=8192 -print_final_stats=1 \
    >"build/fuzz/$target.log" 2>&1 || failures=1
  grep -aE '^(SUMMARY|ALARM|stat::number_of|stat::peak)|CHECK failed|runtime error' "build/fuzz/$target.log"
done
exit $failures
