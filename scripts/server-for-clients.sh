# shellcheck shell=bash
# For scripts that run Python packages against the server; they `source` it from the repository's root and set `program`.
#
# `data` is a folder for the server, which is removed at the end, and `clients` that of the virtual environments.
clients=${CARGO_TARGET_DIR:-target}/clients
data=$(mktemp --directory)
server=

# Makes the virtual environment of a set of packages, unless it has them: environment NAME.
environment() {
    local packages=tests/clients/$1.txt folder=$clients/$1
    if ! cmp --silent "$packages" "$folder/installed.txt"; then
        rm -rf "$folder"
        python3 -m venv "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check --requirement "$packages"
        cp "$packages" "$folder/installed.txt"
    fi
}

# Ends the server that was started, by its number.
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$data"
}
trap finish EXIT

# Starts the server on data/NAME with more arguments, its log in data/NAME.log, and sets RUSHES_ADDRESS:
# start NAME [ARGUMENT...].
start() {
    local name=$1
    shift
    : >"$data/started"
    "$program" serve --json --listen 127.0.0.1:0 --data-dir "$data/$name" "$@" >"$data/started" 2>"$data/$name.log" &
    server=$!
    for _ in $(seq 600); do
        [[ ! -s $data/started ]] || break
        kill -0 "$server" || { cat "$data/$name.log" >&2; exit 1; }
        sleep 0.1
    done
    RUSHES_ADDRESS=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["url"])' <"$data/started")
    export RUSHES_ADDRESS
}
