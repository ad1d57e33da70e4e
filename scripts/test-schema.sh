#!/usr/bin/env bash
# Sends requests to the server that schemathesis makes from its OpenAPI document, valid and invalid ones, and checks the
# answers against the document.
#
#   scripts/test-schema.sh PROGRAM [EXAMPLES]
#
# The package has a virtual environment in target/clients, which is made once. EXAMPLES is the number of random requests
# for each operation, 20 unless given.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1
examples=${2:-20}
# shellcheck source=scripts/server-for-clients.sh
source scripts/server-for-clients.sh

environment schemathesis
st=$(realpath "$clients/schemathesis/bin/st")
mkdir "$data/asked"
token=$("$program" serve token add schemathesis --data-dir "$data/asked")
# Small clips, and so many that the queue is full at times.
start asked --model-alias '*=mini' --max-frames 17 --max-side 112 --max-steps 20 --max-queue 20

# Not asked: events and websockets, whose answers end with their clips; the route of MLPerf, which answers when the clip
# is complete; those that are always refused. That every valid request is accepted is not checked: what a clip may be
# depends on the model and on the operator, and is not part of the document.
began=$SECONDS
# It leaves a folder where it runs.
(
    cd "$data"
    "$st" run "$RUSHES_ADDRESS/openapi.json" --header "Authorization: Bearer $token" \
        --checks all --exclude-checks positive_data_acceptance --phases examples,coverage,fuzzing \
        --max-examples "$examples" --seed 1 --generation-database :memory: --warnings off --no-color \
        --exclude-path-regex '/(events|ws|live)|/v1/videos/(generations|extensions|characters)|image2video' \
    >report
) || {
    sed -n '/FAILURES/,$p' "$data/report" >&2
    tail -20 "$data/asked.log" >&2
    exit 1
}
tail -3 "$data/report"
# A server that has failed says so in its log, also where the answer was as described.
if grep --quiet '"level":"ERROR"' "$data/asked.log"; then
    grep '"level":"ERROR"' "$data/asked.log" >&2
    exit 1
fi
echo "    schemathesis with $examples examples: $((SECONDS - began)) s"
