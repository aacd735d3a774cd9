#!/usr/bin/env bash
# The command pull, which the default build does not have: what its client is made of, its tests against a hub on this machine,
# and a load over TLS. Needs cargo, python3 and openssl.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2 && exit 1; }

say "with pull, too, no tokio and no C or C++"
tree=$(cargo tree --locked -p orchestratord --features pull -e normal,build --prefix none --format '{p}' | cut -d' ' -f1 | sort -u)
grep -qx ureq <<<"$tree" || fail "cargo tree does not show the client"
unwanted='^(tokio|hyper|reqwest|openssl-sys|native-tls|ring|aws-lc-sys|cc|cxx|cmake|bindgen|.*-sys-src)$'
if found=$(grep -E "$unwanted" <<<"$tree"); then fail "pull depends on: $found"; fi
echo "$(wc -l <<<"$tree") packages, none of them unwanted"

say "tests"
cargo test --locked -p orchestratord --features pull --lib -- cli::
cargo test --locked -p orchestratord --features pull --test pull

say "a load over TLS, by a certificate that is trusted and by one that is not"
target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)
work=$(mktemp -d)
hub=
trap 'if [ -n "$hub" ]; then kill "$hub" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=a hub for tests' \
  -keyout "$work/ca.key" -out "$work/ca.pem" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout "$work/key.pem" \
  -out "$work/request.pem" 2>/dev/null
printf 'subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n' >"$work/extensions"
openssl x509 -req -in "$work/request.pem" -CA "$work/ca.pem" -CAkey "$work/ca.key" -days 2 -extfile "$work/extensions" \
  -out "$work/cert.pem" 2>/dev/null
python3 - "$work" <<'PY' &
import hashlib, http.server, json, os, ssl, sys
work = sys.argv[1]
commit, body = "0123456789" * 4, os.urandom(3_000_000)
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/api/models/org/repo/revision/"):
            data, headers = json.dumps({"sha": commit, "siblings": [{"rfilename": "a.gguf"}]}).encode(), {}
        else:
            data, headers = body, {"ETag": '"%s"' % hashlib.sha256(body).hexdigest()}
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
    do_HEAD = do_GET
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{work}/cert.pem", f"{work}/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
open(f"{work}/body", "wb").write(body)
open(f"{work}/port.new", "w").write(str(server.server_port))
os.rename(f"{work}/port.new", f"{work}/port")
server.serve_forever()
PY
hub=$!
for _ in $(seq 200); do if [ -f "$work/port" ]; then break; fi; sleep 0.05; done
pull() {
  env -u HF_TOKEN -u ORCH_CONFIG "$@" no_proxy=localhost "$target/debug/orchestratord" pull hf:org/repo --pull-allow org/repo \
    --pull-endpoint "https://localhost:$(cat "$work/port")" --pull-cache "$work/cache"
}
status=0
pull -u SSL_CERT_FILE 2>"$work/refused" || status=$?
[ "$status" = 1 ] && grep -qi certificate "$work/refused" || { cat "$work/refused" && fail "an unknown certificate was taken"; }
path=$(pull SSL_CERT_FILE="$work/ca.pem")
cmp "$path" "$work/body" || fail "other bytes came"
echo "loaded and checked"
