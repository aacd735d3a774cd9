#!/usr/bin/env bash
# The image of docs/deploy/Dockerfile: built, or one that is there already, then run: not as root, its health check, a task, a transcript
# on its volume, SIGTERM. Needs docker or podman, and curl; not part of .ci/run, for the build is a release build and its bases come
# from a registry.
#   ci/image.sh [IMAGE]
#   CONTAINER='podman --runtime runc'    another program, or options of it
#   RUN_OPTIONS='--ulimit nofile=20000'  options of its command run
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2 && exit 1; }
read -ra container <<<"${CONTAINER:-$(command -v docker || command -v podman || fail "neither docker nor podman is here")}"
read -ra options <<<"${RUN_OPTIONS:-}"
image=${1:-}
if [ -z "$image" ]; then
  say "build"
  image=orchestratord
  # As docker: podman's own format has no health checks.
  case ${container[0]} in *podman) as=(--format docker) ;; *) as=() ;; esac
  "${container[@]}" build "${as[@]}" -f docs/deploy/Dockerfile -t "$image" .
fi

say "it starts, and not as root"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
main=$(free_port) gate=$(free_port) key=a-key-for-images name=orchestratord-image-$$
events=$(mktemp)
trap '"${container[@]}" rm -f "$name" >/dev/null 2>&1 || true; rm -f "$events"' EXIT
"${container[@]}" run -d --name "$name" --network host "${options[@]}" -e ORCH_API_KEYS=$key -e ORCH_LISTEN=127.0.0.1:"$main" \
  -e ORCH_GATEWAY_LISTEN=127.0.0.1:"$gate" "$image" >/dev/null
for _ in $(seq 200); do if curl -fs -o /dev/null "http://127.0.0.1:$gate/readyz"; then break; fi; sleep 0.1; done
curl -fsS "http://127.0.0.1:$gate/readyz" || { "${container[@]}" logs "$name" && fail "it does not come up"; }
"${container[@]}" logs "$name" 2>&1 | grep driver
[ "$("${container[@]}" exec "$name" id -u)" = 10001 ] || fail "it runs as another user than 10001"

say "its health check, which can fail"
check=$("${container[@]}" inspect --format '{{index .Config.Healthcheck.Test 3}}' "$name")
"${container[@]}" exec "$name" bash -c "$check" || fail "the health check fails"
if "${container[@]}" exec -e ORCH_GATEWAY_LISTEN=127.0.0.1:1 "$name" bash -c "$check" 2>/dev/null; then
  fail "the health check finds a server where none is"
fi

say "a task, and its transcript on the volume"
curl -fsSN "http://127.0.0.1:$main/v1/tasks" -H "X-API-Key: $key" -H 'Accept: text/event-stream' -d '{
  "task_id": "7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a01", "session_id": "7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a02",
  "workload": "completion", "model_ref": "wren", "engine": "cpu", "priority": "interactive",
  "ctx": 512, "max_tokens": 50, "deadline_ms": 60000, "prompt": "Once upon a time" }' >"$events"
tokens=$(grep -c '^event: token' "$events") artifact=$(grep -o 'sha256:[0-9a-f]*' "$events" | tail -n 1)
[ "$tokens" = 50 ] || fail "$tokens tokens came, of 50"
"${container[@]}" exec "$name" find /var/lib/orchestratord -name "*${artifact: -62}*" | grep . || fail "$artifact is not on the volume"

say "SIGTERM"
began=$SECONDS
"${container[@]}" stop -t 20 "$name" >/dev/null
status=$("${container[@]}" inspect --format '{{.State.ExitCode}}' "$name")
[ "$status" = 0 ] || fail "it ended with $status"
[ $((SECONDS - began)) -lt 15 ] || fail "it was killed"
echo "stopped cleanly"
