#!/usr/bin/env bash
# The script that fills the table of the CPU engine, for a moment of each of its parts on the built-in model: so that it does
# not rot. Its figures mean nothing. Needs cargo, curl, python3 and two processors.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
SMOKE=yes OUT=$out bench/cpu.sh
for section in 'One sequence' 'Sixteen sequences' 'another process' 'first 202' 'Memory beyond' 'nobody asks' 'A status request' \
  'a grammar costs' 'determinism costs'; do
  grep -q "^## .*$section" "$out"/*.md || { cat "$out"/*.md && echo "FAILED: the record has no section on: $section" >&2 && exit 1; }
done
grep -v '^- Machine' "$out"/*.md | grep -cE '^(\||-)' | sed 's/$/ rows and lines/'
