#!/usr/bin/env bash
# Runs the tests of the CPU kernels under valgrind's memcheck. It detects accesses outside of allocated memory and
# results that depend on uninitialised memory. Valgrind supports neither AVX-512 nor AMX, so it executes the paths avx2
# and scalar, and the tile drivers on emulated tiles. The tests print which paths they skip.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo test -p rushes-kernels --lib --no-run
binary=$(cargo test -p rushes-kernels --lib --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/kernels-[^"]*\)".*/\1/p' | tail -n 1)
# Speeds are meaningless under valgrind, and the 100,000 keys of two tests would take hours.
exec valgrind --error-exitcode=9 --quiet "$binary" --test-threads 1 --skip peak:: --skip a_long_tail \
    --skip a_hundred_thousand "$@"
