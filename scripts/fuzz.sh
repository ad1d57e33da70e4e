#!/usr/bin/env bash
# Fuzzes the readers of foreign bytes with cargo-fuzz: scripts/fuzz.sh SECONDS [TARGET...]
#
# Each target (a file in fuzz/fuzz_targets; all of them if none is given) runs for SECONDS, from its seeds in fuzz/seeds
# and from what earlier runs found, in fuzz/corpus. A finding is written to fuzz/artifacts. It becomes a seed, which the
# ordinary tests then run, once its fault is mended.
#
# Needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?"usage: scripts/fuzz.sh SECONDS [TARGET...]"}
shift
if [ $# = 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do
        set -- "$@" "$(basename "$file" .rs)"
    done
fi
# The dependencies that the program is built with; cargo adds those of libFuzzer.
cp Cargo.lock fuzz/Cargo.lock
for target in "$@"; do
    mkdir -p "fuzz/corpus/$target"
    # An input is a few kilobytes, so a single allocation of more than 256 MB is a fault.
    cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -malloc_limit_mb=256 -timeout=10 -max_len=65536
done
