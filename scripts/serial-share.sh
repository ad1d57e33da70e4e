#!/usr/bin/env bash
# Which share of the instructions of a block's operators no second thread can take over: callgrind counts a whole block, the
# same without the tasks that threads share, and nothing but the start of the program. Valgrind knows no AVX-512, so it is
# the path avx2 that is counted.
#     serial-share.sh [ROWS]
set -euo pipefail
cd "$(dirname "$0")/.."
rows=${1:-260}
cargo build --release -p rushes-kernels --example block
program=${CARGO_TARGET_DIR:-target}/release/examples/block
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$rows" "$1" "$2" 2>&1 |
        sed -n 's/.*Collected *: *\([0-9]*\).*/\1/p'
}
nothing=$(count 1 nothing)
for threads in 1 2; do
    all=$(count "$threads" all)
    serial=$(count "$threads" serial)
    awk -v t="$threads" -v r="$rows" -v a="$((all - nothing))" -v s="$((serial - nothing))" \
        'BEGIN { printf "%d threads, %d rows: %.0f instructions, %.0f of them serial: %.4f %%\n", t, r, a, s, 100 * s / a }'
done
