#!/usr/bin/env bash
# Runs the tests that need execution providers, and prints which were skipped and why.
#
#   [REQUIRE=openvino,webgpu] [SMOKE=1] scripts/test-providers.sh [ARGUMENTS OF CARGO TEST]
#
# A test whose provider is named in REQUIRE fails where it would be skipped. SMOKE=1 runs only the short ones.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
for name in $(tr , ' ' <<<"${REQUIRE:-}"); do
    case $name in
    openvino | webgpu | tensorrt-rtx | cuda | tensorrt) ;;
    *)
        echo "REQUIRE cannot be $name: it is no execution provider" >&2
        exit 2
        ;;
    esac
done
export RUSHES_REQUIRE_PROVIDERS=${REQUIRE:-}
# The software driver of WebGPU, where the machine has no GPU.
# shellcheck source=/dev/null
[[ ! -e $target/providers/webgpu/env.sh ]] || source "$target/providers/webgpu/env.sh"
filter=()
[[ -z ${SMOKE:-} ]] || filter=(smoke)
mkdir -p "$target"
log=$target/test-providers.log
failed=0
# One test at a time: each provider uses all processors, and a software driver much memory.
cargo test --locked --workspace "$@" --test providers -- --test-threads=1 "${filter[@]}" 2>&1 | tee "$log" || failed=1
if grep -q 'skipped: ' "$log"; then
    echo 'These tests were skipped:'
    grep -o 'skipped: .*' "$log" | sort -u | sed 's/^skipped: /  /'
else
    echo 'No test was skipped.'
fi
exit $failed
