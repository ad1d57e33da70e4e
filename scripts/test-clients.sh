#!/usr/bin/env bash
# Runs real clients, unchanged, against the server: the Python packages openai, dashscope and litellm.
#
#   scripts/test-clients.sh PROGRAM
#
# Each set of packages has a virtual environment in target/clients, which is made once.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1
target=${CARGO_TARGET_DIR:-target}
clients=$target/clients

# Makes the virtual environment of a set of packages, unless it has them.
environment() {
    local packages=tests/clients/$1.txt folder=$clients/$1
    if ! cmp --silent "$packages" "$folder/installed.txt"; then
        rm -rf "$folder"
        python3 -m venv "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check --requirement "$packages"
        cp "$packages" "$folder/installed.txt"
    fi
}

data=$(mktemp --directory)
server=
# Ends the server that this script has started, by its number.
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$data"
}
trap finish EXIT

# Starts the server, with or without a token, and sets RUSHES_ADDRESS.
start() {
    : >"$data/started"
    "$program" serve --json --listen 127.0.0.1:0 --data-dir "$data/$1" \
        --model-alias 'wan2.2*=mini' --model-alias 'sora-*=mini' >"$data/started" 2>"$data/$1.log" &
    server=$!
    for _ in $(seq 600); do
        [[ ! -s $data/started ]] || break
        kill -0 "$server" || { cat "$data/$1.log" >&2; exit 1; }
        sleep 0.1
    done
    RUSHES_ADDRESS=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["url"])' <"$data/started")
    export RUSHES_ADDRESS
}

run() {
    local began=$SECONDS
    "$clients/$1/bin/python" "tests/clients/$2.py" || { tail -40 "$data/clips.log" >&2; exit 1; }
    echo "    $2 with tests/clients/$1.txt: $((SECONDS - began)) s"
}

for packages in new old litellm; do
    environment "$packages"
done
mkdir "$data/clips"
RUSHES_TOKEN=$("$program" serve token add clients --data-dir "$data/clips")
export RUSHES_TOKEN
start clips
run new with_openai
run new with_dashscope
run new with_requests
run old with_openai
run old with_dashscope
run litellm with_litellm
