#!/usr/bin/env bash
# The CUDA kernels without a GPU: compiled for every target by a pinned NVRTC and held against kernels.lock and the
# packs, then run on the emulated device, and through the emulated driver, under the address sanitizer. Needs python3 with
# venv, cargo, and g++ on x86-64. With `lock`, only the first;
# `cargo test` runs the kernels, too, without the sanitizer, from a library that engine/src/testing/emulator.rs keeps.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)
work=$target/kernels
venv=$work/nvrtc-12.9.86

[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nvidia-cuda-nvrtc-cu12==12.9.86
lib=$(echo "$venv"/lib/python3*/site-packages/nvidia/cuda_nvrtc/lib)
"$venv/bin/python" engine/kernels/build.py "$lib" --check
# The binary's own way to compile them, for tuning.
LD_LIBRARY_PATH=$lib cargo test -q -p orchestratord-engine --test cuda_driver -- --ignored kernels_compiled

[ "${1:-}" != lock ] || exit 0

compiler=${CXX:-g++}
command -v "$compiler" >/dev/null || { echo "FAILED: $compiler is missing: the kernels cannot be emulated" >&2 && exit 1; }
"$compiler" -std=c++20 -O1 -g -march=native -ffp-contract=off -fno-strict-aliasing -fsanitize=address,undefined \
  -fno-sanitize-recover=all -fPIC -shared -fvisibility=hidden -DEMULATED -x c++ engine/kernels/*.cu \
  engine/kernels/emulator/{fibers,fragments,driver}.cpp -Wl,-soname,libcuda.so -o "$work/emulator.so"
tests=(cuda cuda_attention cuda_tensor cuda_ahead cuda_driver)
cargo test -p orchestratord-engine "${tests[@]/#/--test=}" --no-run
asan=$("$compiler" -print-file-name=libasan.so)
# What Rust's test harness keeps until the end is no leak of ours.
export ORCH_EMULATOR=$work/emulator.so ASAN_OPTIONS=detect_leaks=0
for test in "${tests[@]}"; do
  binary=$(cargo test -p orchestratord-engine --test $test --no-run 2>&1 | grep -o "([^()]*/$test-[0-9a-f]*)" | tr -d '()')
  [[ $binary == /* ]] || binary=$PWD/$binary
  (cd engine && LD_PRELOAD=$asan "$binary")
done
