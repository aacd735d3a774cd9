#!/usr/bin/env bash
# Before every commit: format, lints, every test. CI runs this first.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*" && "$@"; }

step cargo fmt --all --check
step cargo clippy --workspace --all-targets -- -D warnings
step cargo test --workspace
