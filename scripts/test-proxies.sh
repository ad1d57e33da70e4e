#!/usr/bin/env bash
# Runs the examples for nginx and Caddy in docs/serve.md, as they stand there, in front of a server.
#
#   scripts/test-proxies.sh PROGRAM
#
# Needs nginx, Caddy, curl and openssl, and installs nothing. Only the port, the address of the server and the
# certificate are put into the examples; everything listens on 127.0.0.1. WAIT=SECONDS sets the longest wait for an
# answer; proxies that are not told otherwise give up after 60.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1
wait=${WAIT:-65}
# Debian has nginx there, which is not in the path of every user.
PATH=$PATH:/usr/sbin
for needed in nginx caddy curl openssl python3; do
    command -v "$needed" >/dev/null || {
        echo "$needed is missing: on Debian, run apt-get install nginx caddy curl openssl" >&2
        exit 4
    }
done
# shellcheck source=scripts/server-for-clients.sh
source scripts/server-for-clients.sh

proxy=
# end NUMBER: ends a process that this script has started.
end() {
    [[ -z $1 ]] || { kill "$1" 2>/dev/null && wait "$1"; } || true
}
finish_all() {
    end "$proxy"
    finish
}
trap finish_all EXIT

# example LANGUAGE: the example in the documentation.
example() { sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/{/^\`\`\`/d;p}" docs/serve.md; }
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# replaced FROM TO: standard input with every FROM replaced; it must be there.
replaced() {
    python3 -c '
import sys
text = sys.stdin.read()
sys.exit(f"the example has no {sys.argv[1]}") if sys.argv[1] not in text else print(text.replace(*sys.argv[1:]), end="")
' "$1" "$2"
}

# Each starts a proxy on $port for the server on $listens, and sets `proxy` to its number.
start_nginx() {
    {
        echo "daemon off; worker_processes 1; pid $data/nginx.pid; error_log $data/nginx.log; user $(id -un) $(id -gn);"
        echo "events {}"
        # As in the settings of Debian.
        echo "http { access_log off; sendfile on; gzip on;"
        for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $data/nginx-$kind;"; done
        example nginx | replaced 'listen 443' "listen 127.0.0.1:$port" | replaced 127.0.0.1:8000 "$listens" |
            replaced /etc/ssl/video.example/ "$data/"
        echo "}"
    } >"$data/nginx.conf"
    nginx -c "$data/nginx.conf" -e "$data/nginx.log" &
    proxy=$!
}
start_caddy() {
    {
        echo "{"
        printf '    %s\n' "admin off" "auto_https disable_redirects" "storage file_system $data/caddy"
        echo "}"
        example caddyfile | replaced 127.0.0.1:8000 "$listens" | replaced 'video.example {' "video.example:$port {
    bind 127.0.0.1
    tls $data/cert.pem $data/key.pem"
    } >"$data/Caddyfile"
    HOME=$data caddy run --adapter caddyfile --config "$data/Caddyfile" 2>"$data/caddy.log" &
    proxy=$!
}

# get PATH: the status of an answer through the proxy to a request without a token.
get() {
    curl --silent --output /dev/null --write-out '%{http_code}' --cacert "$data/cert.pem" \
        --resolve "video.example:$port:127.0.0.1" "https://video.example:$port$1" || true
}

# served NAME PROXY: a server and a proxy before it.
served() {
    port=$(free_port)
    start "$1" --public-url "https://video.example:$port"
    listens=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["address"])' <"$data/started")
    "start_$2"
    for _ in $(seq 100); do
        # A server without tokens answers 403 to this name.
        [[ $(get /readyz) != [24]* ]] || return 0
        kill -0 "$proxy" || break
        sleep 0.1
    done
    echo "$2 does not answer" >&2
    cat "$data/$2.log" >&2
    exit 1
}
end_served() {
    end "$proxy"
    proxy=
    end "$server"
    server=
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=video.example \
    -addext subjectAltName=DNS:video.example -keyout "$data/key.pem" -out "$data/cert.pem" 2>/dev/null
for name in nginx caddy; do
    began=$SECONDS
    case $name in nginx) nginx -v 2>&1 ;; caddy) echo "caddy $(caddy version)" ;; esac
    # A server whose operator has forgotten the tokens is not open to everyone.
    mkdir "$data/open-$name" "$data/behind-$name"
    served "open-$name" "$name"
    status=$(get /v1/videos)
    [[ $status == 403 ]] || { echo "without tokens the answer is $status" >&2; exit 1; }
    end_served
    RUSHES_TOKEN=$("$program" serve token add clients --data-dir "$data/behind-$name")
    export RUSHES_TOKEN
    served "behind-$name" "$name"
    RUSHES_CERTIFICATE=$data/cert.pem RUSHES_WAIT=$wait python3 tests/clients/through_proxy.py || {
        tail -n 20 "$data/$name.log" "$data/behind-$name.log" >&2
        exit 1
    }
    end_served
    if grep '"level":"ERROR"' "$data/behind-$name.log" >&2; then
        exit 1
    fi
    echo "    $name: $((SECONDS - began)) s"
done
