#!/usr/bin/env bash
# The portable path of the CPU kernels, the worker pool and what they share, under Miri: undefined behaviour, data races and
# leaks are errors. Miri knows no instruction set but the portable one. Needs a nightly Rust with Miri; minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo +nightly miri --version >/dev/null 2>&1 || {
  echo "Miri is not installed: rustup toolchain install nightly && rustup +nightly component add miri rust-src" >&2
  exit 1
}
# Functions of one number are left out: there is nothing in them but arithmetic, and millions of calls.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri"
exec cargo +nightly miri test -p orchestratord-cpu --lib -- --skip math::
