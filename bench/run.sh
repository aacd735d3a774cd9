#!/usr/bin/env bash
# Measures the server, its peers and the floor, side by side, in under ten minutes, and writes
# bench/record/serving-DATE.md with the machine and the date. Linux, two processors at least: the servers run on
# one, the client on the other, and nothing else should.
#
#   LLAMA_SERVER=/path/to/llama-server   adds the rows with the real engine (llama.cpp from any package)
#   ROUNDS=3 WINDOW=2                    rounds, and seconds of each measurement
#   CASES="post stream-64"               some cases only
#   OUT=/elsewhere                       another folder for the record
#   BUILD=no                             measures what was built before
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-3} WINDOW=${WINDOW:-2} OUT=${OUT:-bench/record}
CASES=${CASES:-post post-70 stream-1 stream-64 stream-1000 saturated crowd long overload idle real-2 real-64 real-1000}
SERVER_CPU=${SERVER_CPU:-0} CLIENT_CPU=${CLIENT_CPU:-1}
LLAMA_SERVER=${LLAMA_SERVER:-}
ulimit -n "$(ulimit -Hn)"

target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)
if [ "${BUILD:-yes}" = yes ]; then
  cargo build --release --locked -p orchestratord -p orchestratord-bench --bins
  (cd bench/peers && CARGO_TARGET_DIR="$target/peers" cargo build --release --locked)
fi
bench="$target/release/orchestratord-bench" ours="$target/release/orchestratord" peers="$target/peers/release"

work=$(mktemp -d) server=
trap 'if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
lines="$work/lines.json" && : >"$lines"
began=$SECONDS

# What a case sets on our server besides.
settings=()

# start SERVER MEASURE INTERVAL_US MAX_TOKENS SLOTS: on a fresh port, pinned; sets $server and $address.
port=18100
start() {
  port=$((port + 1)) address="127.0.0.1:$port"
  local paced=(--listen "$address" --interval-us "$3") pin=(taskset -c "$SERVER_CPU")
  # The server takes the place of the subshell, so that its number is the one that is known here.
  case $1 in
    floor) exec "${pin[@]}" "$peers/floor" "${paced[@]}" --measure "$2" --max-tokens "$4" ;;
    axum) exec "${pin[@]}" "$peers/axum-server" "${paced[@]}" ;;
    hyper) exec "${pin[@]}" "$peers/hyper-server" "${paced[@]}" ;;
    ours) exec "${pin[@]}" "$bench" null-server "${paced[@]}" --set "slots_max=$5" --set "step_rows_max=$5" "${settings[@]}" ;;
    ours-epoll)
      exec "${pin[@]}" "$bench" null-server "${paced[@]}" --set "slots_max=$5" --set "step_rows_max=$5" "${settings[@]}" --set driver=legacy
      ;;
  esac >"$work/out" 2>"$work/log" &
  server=$!
  for _ in $(seq 200); do
    if grep -q listening "$work/out"; then return; fi
    sleep 0.05
  done
  echo "$1 did not come up:" && cat "$work/out" "$work/log" && exit 1
}
stop() {
  kill -KILL "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  server=
}
# The window is WINDOW seconds, or LASTS.
load() { taskset -c "$CLIENT_CPU" "$bench" load --address "$address" --pid "$server" --window "${LASTS:-$WINDOW}" --json "$lines" "$@"; }

# A task that has ended is remembered for a while: memory is taken for the first second, and used again ever after. What a
# request costs is measured when our server has come to its bounds, of tasks (16 384) and of transcripts (256 MiB).
STEADY=${STEADY:-5}

# measure CASE MEASURE CONNECTIONS INTERVAL_US MAX_TOKENS SLOTS [OPTIONS]: every server in turn.
measure() {
  local case=$1 what=$2 connections=$3 interval=$4 tokens=$5 slots=$6
  shift 6
  for name in floor hyper axum ours ours-epoll; do
    start "$name" "$what" "$interval" "$tokens" "$slots"
    load --server "$name" --case "$case" --measure "$what" --connections "$connections" --max-tokens "$tokens" "$@"
    stop
  done
}

# real CASE CONNECTIONS TOKENS: our binary and llama.cpp's server, both with the built-in model on one core.
real() {
  local case=$1 connections=$2 tokens=$3 ctx=256
  for name in ours llama.cpp; do
    port=$((port + 1)) address="127.0.0.1:$port"
    local pin=(taskset -c "$SERVER_CPU") api=ours
    if [ "$name" = ours ]; then
      ORCH_LISTEN=$address ORCH_API_KEYS=bench-key-of-no-value ORCH_SLOTS_MAX=64 ORCH_STEP_ROWS_MAX=256 \
        ORCH_QUEUE_CAPACITY=4096 ORCH_ON_TIME_PROBABILITY_FLOOR=0 "${pin[@]}" "$ours" >"$work/out" 2>"$work/log" &
    else
      [ -n "$LLAMA_SERVER" ] || continue
      api=openai
      # As its manual has it: a slot for each client it is to serve at once, continuous batching on.
      local slots=$((connections < 64 ? connections : 64))
      "${pin[@]}" "$LLAMA_SERVER" -m engine/models/wren.gguf --port "$port" -t 1 -tb 1 -np "$slots" -c $((ctx * slots)) \
        --api-key bench-key-of-no-value --no-webui --threads-http 4 >"$work/out" 2>"$work/log" &
    fi
    server=$!
    local up=
    for _ in $(seq 200); do
      if grep -q "$address" "$work/out" "$work/log"; then up=yes && break; fi
      sleep 0.05
    done
    [ -n "$up" ] || { echo "$name did not come up:" && tail "$work/out" "$work/log" && exit 1; }
    sleep 0.3
    LASTS=$((WINDOW * 2)) load --server "$name" --case "$case" --api "$api" --connections "$connections" \
      --max-tokens "$tokens" --prompt-len 60 --warmup 2
    stop
  done
}

# crowd: ten thousand open streams, of which 4096 decode, with and without Prometheus beside them.
crowd() {
  settings=(--set on_time_probability_floor=0 --set tasks_max=32768)
  for case in crowd crowd-scraped; do
    local scrape=() && [ "$case" = crowd ] || scrape=(--scrape-hz 20)
    start ours stream 200000 1900 4096
    LASTS=$((WINDOW * 3)) load --server ours --case "$case" --measure stream --connections 10000 --max-tokens 1900 --grid-us 200000 \
      --warmup 8 "${scrape[@]}"
    stop
  done
  settings=()
}

# long: streams, and beside them long prompts that a second client sends.
long() {
  for case in calm long; do
    start ours stream 5000 1900 256
    if [ "$case" = long ]; then
      taskset -c "$CLIENT_CPU" "$bench" load --address "$address" --measure post --rate 100 --prompt-len 6000 --max-tokens 1 \
        --connections 16 --seed 2 --warmup 1 --window 5 >"$work/second" &
    fi
    load --server ours --case "$case" --measure stream --connections 64 --max-tokens 1900 --grid-us 5000 --scrape-hz 20
    ! [ "$case" = long ] || { wait -n "$!" && grep -q ' 0 failed' "$work/second"; } || { cat "$work/second" && exit 1; }
    stop
  done
}

# overload: tasks of 64 tokens for 64 slots and a queue of 64, at half of what the engine can do and at twice that.
overload() {
  settings=(--set queue_capacity=64 --set on_time_probability_floor=0)
  start ours stream 5000 64 64
  LASTS=$((WINDOW * 2)) load --server ours --case half --measure stream --connections 1000 --max-tokens 64 --rate 100 --warmup 2
  LASTS=$((WINDOW * 2)) load --server ours --case twice --measure stream --connections 1000 --max-tokens 64 --rate 400 --warmup 2
  stop
  settings=()
}

wants() { [[ " $CASES " == *" $1 "* ]]; }
for round in $(seq "$ROUNDS"); do
  echo "== round $round of $ROUNDS, $((SECONDS - began)) s"
  ! wants post || measure post post 64 1000 1 256 --warmup "$STEADY"
  if wants post-70; then
    rate=$(grep '"server":"axum","case":"post",' "$lines" | tail -n 1 | grep -o '"requests_per_second":[0-9]*' | cut -d: -f2)
    measure post-70 post 256 1000 1 256 --warmup "$STEADY" --rate $((${rate:-50000} * 7 / 10))
  fi
  ! wants stream-1 || measure stream-1 stream 1 2000 1900 16 --grid-us 2000
  ! wants stream-64 || measure stream-64 stream 64 5000 1900 64 --grid-us 5000
  ! wants stream-1000 || measure stream-1000 stream 1000 20000 1900 1024 --grid-us 20000
  ! wants saturated || measure saturated stream 1000 2000 1900 1024
  ! wants crowd || crowd
done
# Once: these rows are our server's alone, or far from level.
! wants long || long
! wants overload || overload
# Tokens an hour apart are late by any deadline: nobody is refused for that here.
settings=(--set on_time_probability_floor=0)
! wants idle || measure idle stream 2000 3600000000 64 1024
! wants real-2 || real real-2 2 128
! wants real-64 || real real-64 64 128
! wants real-1000 || real real-1000 1000 128

cpu=$(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)
{
  echo "# The serving path, $(date -u +%F)"
  echo
  echo "- Machine: $cpu, $(nproc) processors, Linux $(uname -r); servers on processor $SERVER_CPU, client on $CLIENT_CPU."
  echo "- Load average at the end: $(cut -d' ' -f1-3 /proc/loadavg) (another's work on these processors is in the figures)."
  echo "- Built from $(git rev-parse --short HEAD), release profile, $(rustc --version)."
  echo "- $ROUNDS rounds, interleaved; each figure is the median of the rounds, each ratio that of the rounds' ratios (with range)."
  echo "- After the crowd, one measurement."
  echo "- \`bench/run.sh\`, $((SECONDS - began)) s; $("$bench" startup --binary "$ours")."
} >"$work/preface"
mkdir -p "$OUT"
"$bench" table --json "$lines" --preface "$work/preface" --out "$OUT/serving-$(date -u +%F).md"
echo "$OUT/serving-$(date -u +%F).md after $((SECONDS - began)) s"
