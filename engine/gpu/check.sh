#!/usr/bin/env bash
# A machine with an NVIDIA GPU, held against the CPU and against the emulated device. It needs no Rust: the binary is built
# elsewhere (cargo build --release) and carried here together with this folder.
#
#     check.sh [-b BINARY] [-k KERNELS] [-f] [PART…]
#
# Parts, all of them without any: doctor kernels server sanitizer. -k: kernels of that folder, compiled by this machine's
# NVRTC. -f: few and small cases, for emulated devices. What was found is a table, printed last; exit status 1 when anything
# failed. Needs bash, curl and sha256sum's company; compute-sanitizer where it is. A few minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$here/../../target/release/orchestratord
kernels=
few=
while getopts b:k:f option; do
  case $option in
    b) binary=$OPTARG ;;
    k) kernels=$OPTARG ;;
    f) few=--few ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(doctor kernels server sanitizer)
[ -x "$binary" ] || { echo "there is no binary at $binary: say where with -b" >&2 && exit 2; }

work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
table=()
failed=0
row() { # PART RESULT REMARK
  table+=("$(printf '%-10s %-8s %s' "$1" "$2" "$3")")
  [ "$2" != FAILED ] || failed=1
}
flags=()
[ -z "$kernels" ] || flags=(--cuda-kernels "$kernels")

part_doctor() {
  if "$binary" doctor --engine cuda --listen 127.0.0.1:0 "${flags[@]}" | tee "$work/doctor"; then
    row doctor ok "$(grep ' device ' "$work/doctor" | sed 's/^ok *device *//')"
  else
    row doctor FAILED "$(grep BAD "$work/doctor" | head -n 1)"
  fi
}

# Every layout and ragged shapes against the CPU; and the bits against those of the emulated device.
part_kernels() {
  if "$binary" device $few "${flags[@]}" | tee "$work/kernels"; then
    row kernels ok "$(grep -c '^ok' "$work/kernels") cases within 1e-3 of the CPU, the same bits in steps of 1, 4 and 16 rows"
  else
    row kernels FAILED "$(grep -c '^BAD' "$work/kernels" || true) cases: see above"
  fi
  local same=0 other=0 name bits
  while read -r name bits; do
    if grep -q "^....  *$name .*bits $bits" "$work/kernels"; then same=$((same + 1));
    elif grep -q "^....  *$name " "$work/kernels"; then other=$((other + 1)) && echo "$name: other bits than the emulated device's"; fi
  done <"$here/emulated.txt"
  if [ "$other" = 0 ] && [ "$same" -gt 0 ]; then row emulator ok "$same cases have the emulated device's bits";
  else row emulator FAILED "$other of $((same + other)) cases have other bits"; fi
}

start() { # SETTINGS…
  "$binary" serve --listen 127.0.0.1:0 --api-keys check-key "$@" >"$work/out" 2>"$work/log" &
  server=$!
  for _ in $(seq 600); do
    if grep -q 'http://' "$work/out"; then break; fi
    kill -0 "$server" 2>/dev/null || { cat "$work/log" && return 1; }
    sleep 0.1
  done
  url=$(grep -o 'http://[0-9.:]*' "$work/out" | head -n 1)
}
stop() { kill -TERM "$server" && wait "$server" && server=; }
texts() { # ENGINE
  local id=00000000-0000-4000-8000-$(printf '%012d' "$RANDOM$RANDOM")
  curl -fsSN "$url/v1/tasks" -H 'X-API-Key: check-key' -H 'Accept: text/event-stream' --max-time 300 -d "{
    \"task_id\":\"$id\",\"session_id\":\"$id\",\"workload\":\"completion\",\"model_ref\":\"wren\",\"engine\":\"$1\",
    \"ctx\":256,\"priority\":\"interactive\",\"max_tokens\":$tokens,\"deadline_ms\":600000,\"prompt\":\"Once upon a time\"}"
}

# The built-in model end to end: the same story by the device, again, and by the CPU.
part_server() {
  tokens=64 && if [ -n "$few" ]; then tokens=4; fi
  start --engine cuda "${flags[@]}" || { row server FAILED "it does not start" && return; }
  texts cuda >"$work/first" && texts cuda >"$work/again"
  curl -fsS "$url/metrics" | grep -E '^(gpu_utilization|vram_used_bytes|engine_step_us_(sum|count))' || true
  stop || row server FAILED "it does not stop"
  start --engine cpu || { row server FAILED "the CPU's does not start" && return; }
  texts cpu >"$work/cpu"
  stop || true
  local story='s/.*"t":"\(\([^"\\]\|\\.\)*\)".*/\1/p'
  for one in first again cpu; do sed -n "$story" "$work/$one" | tr -d '\n' >"$work/$one.text"; done
  if ! grep -q 'event: end' "$work/first"; then row server FAILED "no whole stream"
  elif ! cmp -s "$work/first.text" "$work/again.text"; then row server FAILED "the same task gave another text"
  elif cmp -s "$work/first.text" "$work/cpu.text"; then row server ok "one story by the device, again, and by the CPU"
  else row server ok "the same story twice; the CPU's differs, as it may: $(wc -c <"$work/first.text") bytes"; fi
}

part_sanitizer() {
  local tool
  if ! tool=$(command -v compute-sanitizer); then row sanitizer skipped "there is no compute-sanitizer here" && return; fi
  for check in memcheck racecheck; do
    if "$tool" --tool "$check" --error-exitcode 1 "$binary" device --few "${flags[@]}" >"$work/$check" 2>&1; then
      row "$check" ok "$(tail -n 1 "$work/$check")"
    else
      tail -n 40 "$work/$check" && row "$check" FAILED "see above"
    fi
  done
}

for part in "${parts[@]}"; do
  printf '\n== %s\n' "$part"
  case $part in
    doctor | kernels | server | sanitizer) "part_$part" ;;
    *) echo "there is no part $part: doctor kernels server sanitizer" >&2 && exit 2 ;;
  esac
done
printf '\n== %s, %s\n' "$(uname -n)" "$(date -u +%Y-%m-%dT%H:%MZ)"
printf '%s\n' "${table[@]}"
exit "$failed"
