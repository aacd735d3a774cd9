#!/usr/bin/env bash
# The release build from outside: what it is made of, the README's curl lines, promtool, and a clean stop.
# Needs cargo, curl, python3, and promtool (Debian's package prometheus).
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2 && exit 1; }

command -v curl >/dev/null || fail "curl is missing"
command -v promtool >/dev/null || fail "promtool is missing: install the package prometheus"

say "the default build has no tokio, compiles no C or C++, and brings no network library"
tree=$(cargo tree --locked -p orchestratord -e normal,build --prefix none --format '{p}' | cut -d' ' -f1 | sort -u)
[ "$(wc -l <<<"$tree")" -gt 20 ] || fail "cargo tree says next to nothing"
unwanted='^(tokio|hyper|reqwest|ureq|openssl-sys|native-tls|rustls|ring|aws-lc-sys|cc|cxx|cmake|bindgen|.*-sys-src)$'
if found=$(grep -E "$unwanted" <<<"$tree"); then fail "the default build depends on: $found"; fi
echo "$(wc -l <<<"$tree") packages, none of them unwanted"

say "build"
# With the benches, whose build the next steps use.
cargo build --release --locked -p orchestratord -p orchestratord-bench --bins
target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)

say "start"
work=$(mktemp -d)
server=
# Whatever happens, no server and no folder is left behind.
trap 'if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
env -u ORCH_CONFIG ORCH_LISTEN=127.0.0.1:0 "$target/release/orchestratord" >"$work/out" 2>"$work/log" &
server=$!
for _ in $(seq 300); do
  if grep -q 'http://' "$work/out"; then break; fi
  kill -0 "$server" 2>/dev/null || { cat "$work/out" "$work/log" && fail "the server ended"; }
  sleep 0.1
done
cat "$work/out"
URL=$(grep -o 'http://[0-9.:]*' "$work/out" | head -n 1)
KEY=$(sed -n 's/^ *key  *\([^ ]*\).*/\1/p' "$work/out" | head -n 1)
[ -n "$URL" ] && [ -n "$KEY" ] || fail "no address or no key on stdout"
for _ in $(seq 300); do
  if curl -s "$URL/v1/pools/default/health" -H "X-API-Key: $KEY" | grep '"ready":true' >/dev/null; then break; fi
  sleep 0.1
done

# What clients read has its unit in its name, milliseconds included; promtool would rather have seconds. That is all that
# it may say: exit status 3 with no other complaint.
check_metrics() {
  curl -fsS "$URL/metrics" >"$work/metrics"
  local status=0
  promtool check metrics <"$work/metrics" >"$work/complaints" 2>&1 || status=$?
  local others
  others=$(grep -v 'metric names should not contain abbreviated units$' "$work/complaints" || true)
  [ -z "$others" ] && { [ "$status" = 0 ] || [ "$status" = 3 ]; } || fail "promtool, status $status: $others"
  echo "accepted"
}

say "promtool check metrics, first scrape"
check_metrics

say "the curl line that the server printed"
grep '^curl ' "$work/out" >"$work/printed" || fail "the server printed no curl line"
(
  curl() { command curl --fail --silent --show-error --max-time 120 "$@"; }
  # shellcheck disable=SC1091
  . "$work/printed"
) >"$work/answers"
grep -q 'event: end' "$work/answers" || { cat "$work/answers" && fail "the printed line brought no whole stream"; }
grep -c 'event: token' "$work/answers" | sed 's/$/ tokens/'

say "the README's lines, and what it says that they print"
export URL KEY
PATH="$target/release:$PATH" python3 ci/transcript.py README.md 'Use it' 'Without a server'

say "promtool check metrics, after some tasks"
check_metrics
grep -q '^tokens_out_total{[^}]*} [1-9]' "$work/metrics" || fail "no tokens were counted"

say "stop"
kill -TERM "$server"
status=0
wait "$server" || status=$?
server=
[ "$status" = 0 ] || { tail -n 20 "$work/log" && fail "exit status $status after SIGTERM"; }
if grep -F "$KEY" "$work/log"; then fail "the log has the key"; fi
echo "stopped cleanly"
