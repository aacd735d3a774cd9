#!/usr/bin/env bash
# A machine with an NVIDIA GPU: held against the CPU and the emulated device, against itself, measured, and beside PyTorch. It
# needs no Rust: the binary is built elsewhere (cargo build --release) and carried here together with this folder.
#
#     check.sh [-b BINARY] [-k KERNELS] [-f] [-o RECORD] [-c COMMIT] [PART…]
#
#     doctor       what the driver says                                                     20 s at most
#     kernels      every layout and ragged shapes against the CPU                           60 s
#     determinism  a sequence alone, in crowds, in pieces, put aside: the same bits         60 s
#     speed        models of real shapes, as shares of what the memory is measured to give  200 s
#     control      the same shapes in PyTorch, if it is here                                150 s
#     server       the built-in model end to end                                            45 s
#     sanitizer    memcheck and racecheck, if compute-sanitizer is here                     60 s
#
# Without any PART all of them, in this order, in under ten minutes. A part that fails or takes too long is marked and the next
# one begins. -k: kernels of that folder, compiled by this machine's NVRTC. -f: few and small cases, for emulated devices.
# -o: a record in Markdown of machine, command and all that was found. -c: what the binary was built from, where there is no
# git to ask. What was measured comes as tables, what was found as one, last; exit status 1 when anything failed.
# SPEED: models of the part speed, SHAPE:TYPE:SECONDS each. PYTHON: the one that has PyTorch (python3).
# Needs bash, curl and coreutils.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$here/../../target/release/orchestratord
kernels=
few=
record=
commit=
while getopts b:k:fo:c: option; do
  case $option in
    b) binary=$OPTARG ;;
    k) kernels=$OPTARG ;;
    f) few=--few ;;
    o) record=$OPTARG ;;
    c) commit=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
all=(doctor kernels determinism speed control server sanitizer)
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")
for part in "${parts[@]}"; do
  [[ " ${all[*]} " == *" $part "* ]] || { echo "there is no part $part: ${all[*]}" >&2 && exit 2; }
done
[ -x "$binary" ] || { echo "there is no binary at $binary: say where with -b" >&2 && exit 2; }
[ -n "$commit" ] || commit=$(git -C "$here" rev-parse --short HEAD 2>/dev/null) || commit=unknown
python=${PYTHON:-python3}

work=$(mktemp -d) || exit 1
server=
trap 'if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
table=()
failed=0
row() { # PART RESULT REMARK
  table+=("$(printf '%-11s %-8s %s' "$1" "$2" "$3")")
  [ "$2" != FAILED ] || failed=1
}
flags=()
[ -z "$kernels" ] || flags=(--cuda-kernels "$kernels")

# Runs a command for so many seconds at most, shows what it says, and keeps it in a file.
bounded() { # SECONDS FILE COMMAND…
  local seconds=$1 file=$2 status
  shift 2
  timeout -k 5 "$seconds" "$@" 2>&1 | tee -a "$file"
  status=${PIPESTATUS[0]}
  [ "$status" != 124 ] || echo "BAD  stopped after $seconds s" | tee -a "$file"
  return "$status"
}
count() { grep -c "$1" "$2" 2>/dev/null || true; } # PATTERN FILE

part_doctor() {
  if bounded 20 "$work/doctor" "$binary" doctor --engine cuda --listen 127.0.0.1:0 "${flags[@]}"; then
    row doctor ok "$(grep ' device ' "$work/doctor" | sed 's/^ok *device *//')"
  else
    row doctor FAILED "$(grep BAD "$work/doctor" | head -n 1)"
  fi
}

# Every layout and ragged shapes against the CPU; and the bits of the first token against those of the emulated device, but for
# bf16, f16 and FP8: in what order tensor cores add and round floats is their own. The first token sees one cell, of which
# attention is exact; others see sums.
part_kernels() {
  if bounded 60 "$work/kernels" "$binary" device $few "${flags[@]}"; then
    row kernels ok "$(count '^ok' "$work/kernels") cases as near to the CPU as halves are, the same bits in steps of 1 to 150 rows"
  else
    row kernels FAILED "$(count '^BAD' "$work/kernels") cases: see above"
  fi
  local same=0 other=0 name bits
  while read -r name bits; do
    if grep -q "^....  *$name .* first $bits$" "$work/kernels"; then same=$((same + 1));
    elif grep -q "^....  *$name " "$work/kernels"; then other=$((other + 1)) && echo "$name: other bits than the emulated device's"; fi
  done <"$here/emulated.txt"
  if [ "$other" = 0 ] && [ "$same" -gt 0 ]; then row emulator ok "$same cases have the emulated device's bits of a first token";
  else row emulator FAILED "$other of $((same + other)) cases have other bits"; fi
}

part_determinism() {
  local well=1
  if [ -n "$few" ]; then
    bounded 60 "$work/same" "$binary" device same --crowd 2 --prompt 17 --decode 3 "${flags[@]}" || well=
  else
    bounded 60 "$work/same" "$binary" device same --shape llama-3.2-1b --type bf16,q4_k --prompt 100 "${flags[@]}" || well=
  fi
  if [ -n "$well" ]; then row determinism ok "$(count '^ok' "$work/same") cases with the bits of the sequence alone";
  else row determinism FAILED "$(count '^BAD' "$work/same") cases: see above"; fi
}

# A process each, so that one that fails or takes too long takes no other along.
part_speed() {
  local well=1 model shape type seconds
  # 200 s together.
  local models=(llama-3.1-8b:bf16:55 llama-3.1-8b:q8_0:40 llama-3.1-8b:f8_e4m3:40 llama-3.1-8b:q4_k:40 llama-3.2-1b:bf16:25)
  local sizes=(--batch 1,8,32,128,256)
  if [ -n "$few" ]; then
    models=(tiny:q8_0:60)
    sizes=(--batch 1,2 --prompt 3 --decode 2 --long 9 --read-mib 1)
  fi
  [ -z "${SPEED:-}" ] || read -ra models <<<"$SPEED"
  for model in "${models[@]}"; do
    IFS=: read -r shape type seconds <<<"$model"
    # It stops by itself before it is stopped.
    bounded "$seconds" "$work/speed" "$binary" device speed --shape "$shape" --type "$type" "${sizes[@]}" \
      --seconds $((seconds * 4 / 5)) --case-seconds $((seconds / 5)) --json "$work/records" "${flags[@]}" || well=
  done
  local said
  said="$(count '^ok' "$work/speed") cases, $(count '^left out' "$work/speed") left out"
  if [ -n "$well" ]; then row speed ok "$said"; else row speed FAILED "$said; $(count '^BAD' "$work/speed") failed: see above"; fi
}

part_control() {
  local status=0 sizes=(--seconds 100)
  if ! command -v "$python" >/dev/null; then row control skipped "there is no $python here" && return; fi
  export TORCHINDUCTOR_CACHE_DIR=$work/inductor
  bounded 30 "$work/control" "$python" "$here/control.py" check --binary "$binary" || status=$?
  if [ "$status" = 3 ]; then row control skipped "$(tail -n 1 "$work/control")" && return; fi
  if [ "$status" != 0 ]; then row control FAILED "its logits are not the engine's: see above" && return; fi
  [ -z "$few" ] || sizes=(--device cpu --shape tiny --type bf16 --batch 1,2 --prompt 3 --decode 2 --long 9)
  bounded 120 "$work/control" "$python" "$here/control.py" speed "${sizes[@]}" --json "$work/records" || status=$?
  local said
  said="$(count '^ok' "$work/control") cases, $(count '^left out' "$work/control") left out"
  if [ "$status" = 0 ]; then row control ok "$said";
  elif [ "$status" = 3 ]; then row control skipped "$(tail -n 1 "$work/control")";
  else row control FAILED "$said; $(count '^BAD' "$work/control") failed: see above"; fi
}

start() { # SETTINGS…
  "$binary" serve --listen 127.0.0.1:0 --api-keys check-key "$@" >"$work/out" 2>"$work/log" &
  server=$!
  for _ in $(seq 100); do
    if grep -q 'http://' "$work/out"; then break; fi
    kill -0 "$server" 2>/dev/null || { cat "$work/log" && server= && return 1; }
    sleep 0.1
  done
  url=$(grep -o 'http://[0-9.:]*' "$work/out" | head -n 1)
  [ -n "$url" ] || { stop && return 1; }
}
stop() { # It is asked to go, and made to if it does not.
  local status=1 pid=$server
  kill -TERM "$pid" 2>/dev/null
  for _ in $(seq 50); do
    if ! kill -0 "$pid" 2>/dev/null; then status=0 && break; fi
    sleep 0.1
  done
  [ "$status" = 0 ] || kill -KILL "$pid" 2>/dev/null
  wait "$pid" || status=1
  server=
  return "$status"
}
texts() { # ENGINE
  local id
  id=00000000-0000-4000-8000-$(printf '%012d' "$RANDOM$RANDOM")
  curl -fsSN "$url/v1/tasks" -H 'X-API-Key: check-key' -H 'Accept: text/event-stream' --max-time "$patience" -d "{
    \"task_id\":\"$id\",\"session_id\":\"$id\",\"workload\":\"completion\",\"model_ref\":\"wren\",\"engine\":\"$1\",
    \"ctx\":256,\"priority\":\"interactive\",\"max_tokens\":$tokens,\"deadline_ms\":600000,\"prompt\":\"$prompt\"}"
}

# The built-in model end to end: the same story by the device, again, and by the CPU.
part_server() {
  tokens=64 patience=5 prompt="Once upon a time"
  if [ -n "$few" ]; then tokens=2 patience=60 prompt=Once; fi
  start --engine cuda "${flags[@]}" || { row server FAILED "it does not start" && return; }
  texts cuda >"$work/first" && texts cuda >"$work/again"
  curl -fsS --max-time 5 "$url/metrics" | grep -E '^(gpu_utilization|vram_used_bytes|engine_step_us_(sum|count))' || true
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
  local tool check status
  if ! tool=$(command -v compute-sanitizer); then row sanitizer skipped "there is no compute-sanitizer here" && return; fi
  for check in memcheck racecheck; do
    status=0
    timeout -k 5 30 "$tool" --tool "$check" --error-exitcode 1 "$binary" device --few "${flags[@]}" >"$work/$check" 2>&1 || status=$?
    if [ "$status" = 0 ]; then row "$check" ok "$(tail -n 1 "$work/$check")"
    # It may not be allowed to look into processes here, which says nothing about the kernels.
    elif ! grep -q 'ERROR SUMMARY\|RACECHECK SUMMARY' "$work/$check"; then row "$check" skipped "it does not run here: $(tail -n 1 "$work/$check")"
    else tail -n 40 "$work/$check" && row "$check" FAILED "see above"; fi
  done
}

for part in "${parts[@]}"; do
  printf '\n== [%3d s] %s\n' "$SECONDS" "$part"
  "part_$part"
done

# What was found, for people and for the record.
summary() {
  [ ! -s "$work/records" ] || "$binary" device report "$work/records" || return 1
  printf '\n== %s, %s\n' "$(uname -n)" "$(date -u +%Y-%m-%dT%H:%MZ)"
  printf '%s\n' "${table[@]}"
}
machine() {
  printf -- '- %s, commit %s, binary SHA-256 %s\n' "$(date -u +%Y-%m-%dT%H:%MZ)" "$commit" "$(sha256sum "$binary" | cut -c1-16)"
  printf -- '- `check.sh%s%s %s`, %d s\n' "${few:+ -f}" "${kernels:+ -k KERNELS}" "${parts[*]}" "$SECONDS"
  printf -- '- %s, %s processors, %s\n' "$(uname -srm)" "$(nproc)" \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
  if command -v nvidia-smi >/dev/null; then
    timeout 10 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit \
      --format=csv,noheader | sed 's/^/- /'
  fi
}
echo
if [ -n "$record" ]; then
  summary >"$work/summary" || failed=1
  {
    printf '# The CUDA engine on a device\n\n'
    machine
    printf '\n'
    sed '/^== /,$d' "$work/summary"
    printf '## What was checked\n\n```\n'
    printf '%s\n' "${table[@]}"
    printf '```\n'
    if [ -s "$work/records" ]; then
      printf '\n## As it was measured\n\n```\n'
      # Warnings of others have paths of this machine.
      grep -hs '^ok  \|^BAD  \|^left out\|^# \|^largest' "$work/speed" "$work/control"
      printf '```\n'
    fi
  } >"$record" || failed=1
  cat "$work/summary"
else
  summary || failed=1
fi
exit "$failed"
