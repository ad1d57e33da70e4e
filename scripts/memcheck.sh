#!/usr/bin/env bash
# Runs the tests of the CPU kernels under valgrind's memcheck: reads and writes outside of what was allocated, and results
# that depend on memory nobody wrote. Valgrind knows no AVX-512 and no AMX, so it sees the paths avx2, scalar and the
# drivers of tiles over emulated ones; the tests print which paths they skip.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo test -p rushes-kernels --lib --no-run
binary=$(cargo test -p rushes-kernels --lib --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/kernels-[^"]*\)".*/\1/p' | tail -n 1)
# Speeds mean nothing here, and the 100,000 keys of two tests would take hours.
exec valgrind --error-exitcode=9 --quiet "$binary" --test-threads 1 --skip peak:: --skip a_long_tail \
    --skip a_hundred_thousand "$@"
