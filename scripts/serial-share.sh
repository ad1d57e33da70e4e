#!/usr/bin/env bash
# Prints the share of a block's instructions that only one thread can execute. callgrind counts a whole block, the block
# without the tasks that threads share, and the start of the program alone. Valgrind does not support AVX-512, so the path
# avx2 is counted.
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
