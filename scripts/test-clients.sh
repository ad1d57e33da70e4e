#!/usr/bin/env bash
# Runs real clients, unchanged, against the server: the Python packages openai, dashscope and litellm.
#
#   scripts/test-clients.sh PROGRAM
#
# Each set of packages has a virtual environment in target/clients, which is made once. With SMOKE=1, each client runs in
# its newest version only, and litellm, which takes long to install, does not.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1
# shellcheck source=scripts/server-for-clients.sh
source scripts/server-for-clients.sh

# Runs a client: run PACKAGES SCRIPT.
run() {
    local began=$SECONDS
    "$clients/$1/bin/python" "tests/clients/$2.py" || { tail -40 "$data/clips.log" >&2; exit 1; }
    echo "    $2 with tests/clients/$1.txt: $((SECONDS - began)) s"
}

sets=(new old litellm)
[[ -z ${SMOKE:-} ]] || sets=(new)
for packages in "${sets[@]}"; do
    environment "$packages"
done
mkdir "$data/clips"
RUSHES_TOKEN=$("$program" serve token add clients --data-dir "$data/clips")
export RUSHES_TOKEN
start clips --model-alias 'wan2.2*=mini' --model-alias 'sora-*=mini'
run new with_openai
run new with_dashscope
run new with_requests
[[ -z ${SMOKE:-} ]] || exit 0
run old with_openai
run old with_dashscope
run litellm with_litellm
