#!/usr/bin/env bash
# Measures the engine on this machine's processors, beside llama.cpp on the same files, and writes bench/record/ARCH/DATE-cpu.md
# with every row of the table that the engine is held to. Linux, two processors at least, and nothing else running.
#
#   bench/cpu.sh                         everything; or some parts: bench/cpu.sh alone sixteen …
#
#   alone        one sequence: prefill of 512 tokens, decode, share of the bandwidth; one and two threads
#   sixteen      sixteen sequences that decode together; one and two threads
#   neighbour    decode with two threads while another process keeps one processor half busy
#   start        from executing the server to its first 202, file in the page cache
#   memory       what is resident beyond weights and KV cache after a prompt of 512 tokens
#   idle         processor time of a server that nobody asks
#   reactor      how long a status request waits while the engine decodes, by number of engine threads
#   grammar      what a JSON schema costs in decode, one and sixteen sequences
#   determinism  lone rows against sums that are split among the threads, which is what a batch-dependent engine might do
#
#   LLAMA_PYTHON=/path/to/python         has llama-cpp-python: adds its figures, turn about, and makes missing files
#   MODELS=/path/to/folder               SHAPE-TYPE.gguf files as bench/random_model.py makes them (needs gguf, numpy)
#   SHAPES="llama-3.2-1b" TYPES="q8_0"   some shapes and types only
#   ROUNDS=3 WINDOW=5                    rounds, and seconds of each measurement of a server
#   OUT=/elsewhere                       another folder for the record
#   BUILD=no                             measures what was built before
#   SMOKE=yes                            the built-in model's file and a moment of everything: shows that the script works
set -euo pipefail
cd "$(dirname "$0")/.."

PARTS=${*:-alone sixteen neighbour start memory idle reactor grammar determinism}
SMOKE=${SMOKE:-no} LLAMA_PYTHON=${LLAMA_PYTHON:-}
prompt=512 decode=32 together=16 starts=10 rest=10 warmup=4
if [ "$SMOKE" = yes ]; then
  ROUNDS=${ROUNDS:-1} WINDOW=${WINDOW:-0.3} MODELS=engine/models SHAPES=wren TYPES=
  prompt=32 decode=8 together=4 starts=2 rest=1 warmup=0.5
fi
ROUNDS=${ROUNDS:-3} WINDOW=${WINDOW:-5} OUT=${OUT:-bench/record/$(uname -m)}
MODELS=${MODELS:-target/models} SHAPES=${SHAPES-qwen2.5-0.5b llama-3.2-1b} TYPES=${TYPES-q8_0 q4_0 q4_k_m bf16}

target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)
if [ "${BUILD:-yes}" = yes ]; then
  cargo build --release --locked -p orchestratord -p orchestratord-bench --bins
fi
bench="$target/release/orchestratord-bench" ours="$target/release/orchestratord"
key=bench-key-of-no-value

work=$(mktemp -d) server= neighbour=
trap 'kill -KILL $server $neighbour 2>/dev/null || true; rm -rf "$work"' EXIT
lines="$work/lines.json" && : >"$lines"
began=$SECONDS

files() { # of all shapes and types, the largest shape's last
  local shape type
  for shape in $SHAPES; do
    for type in ${TYPES:-none}; do
      if [ "$type" = none ]; then echo "$MODELS/$shape.gguf"; else echo "$MODELS/$shape-$type.gguf"; fi
    done
  done
}
# Servers are measured with the largest shape's first type.
served=$(files | tail -n "$(wc -w <<<"${TYPES:-none}")" | head -n 1)
for file in $(files); do
  [ -e "$file" ] && continue
  name=$(basename "$file" .gguf)
  mkdir -p "$MODELS"
  type=${name##*-}
  "${LLAMA_PYTHON:-python3}" bench/random_model.py "${name%-"$type"}" "$type" "$file"
done
wants() { [[ " $PARTS " == *" $1 "* ]]; }
say() { echo "== [$((SECONDS - began)) s] $*"; }
line() { printf '%s\n' "$1" >>"$lines"; }
name_of() { basename "$1" .gguf; }

# engine FILE OPTIONS: the engine's own bench, llama.cpp's turn about with ours where there is one. A list of rows as JSON.
engine() {
  local file=$1 && shift
  local beside=() && [ -z "$LLAMA_PYTHON" ] || beside=(--llama --python "$LLAMA_PYTHON")
  "$ours" bench --model "$file" --json "${beside[@]}" "$@" 2>"$work/log" || { cat "$work/log" >&2 && exit 1; }
}

# start FILE THREADS: a server on a fresh port; sets $server and $address.
port=18600
start() {
  port=$((port + 1)) address="127.0.0.1:$port"
  ORCH_LISTEN=$address ORCH_API_KEYS=$key ORCH_MODEL=$1 ORCH_THREADS=$2 ORCH_ON_TIME_PROBABILITY_FLOOR=0 \
    "$ours" >"$work/out" 2>"$work/log" &
  server=$!
  for _ in $(seq 400); do
    if curl -s "http://$address/v1/pools/default/health" -H "X-API-Key: $key" | grep -q '"ready":true'; then return; fi
    kill -0 "$server" 2>/dev/null || break
    sleep 0.05
  done
  echo "the server did not come up:" && cat "$work/out" "$work/log" && exit 1
}
stop() {
  kill -KILL "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  server=
}
# load PART CASE OPTIONS: the load generator on the server, and its report under a name. Prompts are short, and nothing else may
# run meanwhile: what the generator leaves behind goes on for a while, so each server is loaded once.
load() {
  local part=$1 case=$2 && shift 2
  "$bench" load --address "$address" --pid "$server" --model "$(name_of "$served")" --prompt-len 16 --max-tokens 1000 --warmup $warmup \
    --window "$WINDOW" --json "$work/report" "$@"
  grep -q '"failed":0,' <<<"$(tail -n 1 "$work/report")" || { tail "$work/log" && echo "requests have failed" && exit 1; }
  line "{\"part\":\"$part\",\"case\":\"$case\",\"report\":$(tail -n 1 "$work/report")}"
}
# Nanoseconds on a processor of all threads of the server.
spent_ns() { cat "/proc/$server"/task/*/schedstat | awk '{ sum += $1 } END { printf "%.0f", sum }'; }
# Trials of steps, and the digest of the file, are over when nothing has been spent for a while.
settle() {
  local before after
  # Of the whole process, in hundredths of a second: a thread that ends takes its own count with it.
  ticks() { cut -d' ' -f14,15 "/proc/$server/stat" | tr ' ' '+'; }
  after=$(($(ticks)))
  for _ in $(seq 60); do
    before=$after && sleep 1 && after=$(($(ticks)))
    [ $((after - before)) -gt 3 ] || return 0
  done
  echo "the server does not come to rest" && exit 1
}

# Of bf16 files also what rounding their activations gives, where the processor can.
isas() {
  echo auto
  if [[ $1 == *-bf16.gguf ]] && "$ours" bench --help | grep -q avx512-bf16; then echo avx512-bf16; fi
}
# rows PART FILE OPTIONS
rows() {
  local part=$1 file=$2 isa name && shift 2
  for isa in $(isas "$file"); do
    name=$(name_of "$file") && local chosen=()
    if [ "$isa" != auto ]; then name="$name, isa $isa" chosen=(--isa "$isa"); fi
    say "$part: $name"
    line "{\"part\":\"$part\",\"model\":\"$name\",\"rows\":$(engine "$file" --threads 1,2 --rounds "$ROUNDS" "${chosen[@]}" "$@")}"
  done
}

part_alone() {
  local file
  for file in $(files); do rows alone "$file" --prompt $prompt --decode $decode; done
}

part_sixteen() {
  local file
  for file in $(files); do rows sixteen "$file" --sequences 16 --decode $together; done
}

# Both programs undisturbed, then both disturbed, in each round; the largest shape only, for llama.cpp takes long over it.
part_neighbour() {
  local file round case rows
  for file in $(files | tail -n "$(wc -w <<<"${TYPES:-none}")"); do
    say "neighbour: $(name_of "$file")"
    for round in $(seq "$ROUNDS"); do
      for case in undisturbed disturbed; do
        if [ $case = disturbed ]; then
          taskset -c "$(($(nproc) - 1))" "$bench" neighbour &
          neighbour=$!
        fi
        rows=$(engine "$file" --threads 2 --prompt 8 --decode $decode --rounds 1)
        [ -z "$neighbour" ] || { kill "$neighbour" && { wait "$neighbour" 2>/dev/null || true; } }
        neighbour=
        line "{\"part\":\"neighbour\",\"model\":\"$(name_of "$file")\",\"case\":\"$case\",\"round\":$round,\"rows\":$rows}"
      done
    done
  done
}

part_start() {
  say "start: $(name_of "$served")"
  cat "$served" >/dev/null
  port=$((port + 1))
  line "{\"part\":\"start\",\"model\":\"$(name_of "$served")\",\"ms\":$("$bench" startup --binary "$ours" --model "$served" --count $starts --listen "127.0.0.1:$port" --json)}"
  port=$((port + starts))
}

# Everything resident but the pages of the model's file, and of that what this session's KV cells take, as the server says.
part_memory() {
  say "memory: $(name_of "$served")"
  local session=5e551011-0000-4000-8000-000000000001 words beyond kv
  start "$served" 1
  settle
  # A word of one letter with its space is a token of every vocabulary that is made here.
  words=$(for _ in $(seq $prompt); do printf ' a'; done)
  curl -sN "http://$address/v1/tasks" -H "X-API-Key: $key" -H 'Accept: text/event-stream' -d "{\"task_id\":\"5e551011-0000-4000-8000-000000000002\",
    \"session_id\":\"$session\",\"workload\":\"completion\",\"model_ref\":\"$(name_of "$served")\",\"engine\":\"cpu\",\"ctx\":$((2 * prompt)),
    \"priority\":\"interactive\",\"max_tokens\":16,\"deadline_ms\":600000,\"ignore_end\":true,\"prompt\":\"$words\"}" >"$work/stream"
  grep -q 'event: end' "$work/stream" || { head -c 2000 "$work/stream" && echo "the task has not ended well" && exit 1; }
  kv=$(curl -s "http://$address/v1/sessions/$session" -H "X-API-Key: $key" | grep -o '"kv_bytes":[0-9]*' | cut -d: -f2)
  [ "${kv:-0}" -gt 0 ] || { echo "the server states no KV cache of the session" && exit 1; }
  # A mapping's first line ends with its file; the model's is known by its path.
  beyond=$(awk -v model="$(realpath "$served")" '
    /^[0-9a-f]+-[0-9a-f]+ / { path = $6 }
    /^Rss:/ && path != model { all += $2 } /^Anonymous:/ { anonymous += $2 }
    END { printf "\"resident\":%.0f,\"anonymous\":%.0f", all * 1024, anonymous * 1024 }' "/proc/$server/smaps")
  line "{\"part\":\"memory\",\"model\":\"$(name_of "$served")\",\"kv\":$kv,$beyond}"
  stop
}

part_idle() {
  say "idle: $(name_of "$served")"
  start "$served" 2
  settle
  local before
  before=$(spent_ns) && sleep $rest
  line "{\"part\":\"idle\",\"model\":\"$(name_of "$served")\",\"seconds\":$rest,\"ns\":$(($(spent_ns) - before))}"
  stop
}

# The metrics are what is asked for, twice a reactor's work: it hands the question to a helper and hears back.
part_reactor() {
  local threads round
  for round in $(seq "$ROUNDS"); do
    for threads in $(seq "$(nproc)"); do
      say "reactor: $(name_of "$served"), $threads engine threads, round $round"
      start "$served" "$threads"
      settle
      [ "$threads" -gt 1 ] || load reactor "nothing decoded" --connections 0 --scrape-hz 100
      load reactor "$threads engine thread(s)" --connections 1 --scrape-hz 100
      stop
    done
  done
}

# Answers that never end by themselves: a string of any text, and small objects without an end.
text='{"type":"json_schema","json_schema":{"schema":{"type":"object","properties":{"text":{"type":"string","minLength":100000}},"required":["text"],"additionalProperties":false}}}'
objects='{"type":"json_schema","json_schema":{"schema":{"type":"array","minItems":10000,"items":{"type":"object","properties":{"id":{"type":"integer"},"kind":{"enum":["red","green","blue"]},"ok":{"type":"boolean"}},"required":["id","kind","ok"],"additionalProperties":false}}}}'
part_grammar() {
  local round connections case
  for round in $(seq "$ROUNDS"); do
    for connections in 1 16; do
      for case in none text objects; do
        say "grammar: $(name_of "$served"), $case, $connections sequences, round $round"
        local format=()
        [ $case = none ] || format=(--response-format "${!case}")
        start "$served" 2
        settle
        load grammar "$case, $connections" --connections $connections "${format[@]}"
        stop
      done
    done
  done
}

part_determinism() {
  say "determinism"
  local size=() && [ "$SMOKE" = no ] || size=(--embedding 256 --ffn 512 --layers 1 --vocab 512 --milliseconds 5)
  line "{\"part\":\"determinism\",\"rows\":$("$bench" tax --threads 2 "${size[@]}")}"
}

for part in $PARTS; do
  declare -F "part_$part" >/dev/null || { echo "there is no part $part" && exit 1; }
done
for part in alone sixteen neighbour start memory idle reactor grammar determinism; do
  ! wants $part || part_$part
done

cpu=$(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)
llama=none && [ -z "$LLAMA_PYTHON" ] || llama="llama-cpp-python $("$LLAMA_PYTHON" -c 'import llama_cpp; print(llama_cpp.__version__)' 2>/dev/null)"
record="$OUT/$(date -u +%F)-cpu.md"
mkdir -p "$OUT"
{
  echo "# The CPU engine beside llama.cpp, $(date -u +%F)"
  echo
  echo "- Machine: $cpu, $(nproc) processors, Linux $(uname -r); $("$ours" logits --tokens 1 --json >/dev/null && "$ours" --version)."
  echo "- Load average at the end: $(cut -d' ' -f1-3 /proc/loadavg) (another's work on these processors is in the figures)."
  echo "- Built from $(git rev-parse --short HEAD), release profile, $(rustc --version). Beside it: $llama."
  echo "- Random weights (\`bench/random_model.py\`). $ROUNDS rounds, programs turn about; figures are medians, ratios are of medians."
  echo "- \`bench/cpu.sh $PARTS\`, $((SECONDS - began)) s."
  python3 bench/cpu_table.py "$lines"
} >"$record"
echo "$record after $((SECONDS - began)) s"
