#!/usr/bin/env bash
# The gateway's page in headless Chromium. Needs cargo, python3 with venv, and Debian's chromium and chromium-driver.
# Screenshots go to the folder that is named, or into the target folder.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)
if [ -z "${ORCHESTRATORD_BIN:-}" ]; then
  cargo build -p orchestratord --bin orchestratord
  export ORCHESTRATORD_BIN="$target/debug/orchestratord"
fi
for program in "${CHROMIUM:-chromium}" "${CHROMEDRIVER:-chromedriver}"; do
  command -v "$program" >/dev/null || { echo "$program is missing: install chromium and chromium-driver" >&2; exit 1; }
done
venv="$target/clients/venv"
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check selenium==4.38.0
timeout 300 "$venv/bin/python" tests/page/page_test.py "${1:-$target/page}"
