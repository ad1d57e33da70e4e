#!/usr/bin/env bash
# Generates docs/streaming.png from real runs: previews after some steps by each renderer, then frames of the clip.
#
#   scripts/preview-strip.sh [PROGRAM] [PROMPT]
#
# Needs ffmpeg. There is a row for the tiny decoder if the embedded model has one.
set -euo pipefail
program=$(realpath "${1:-target/release/rushes}")
prompt=${2:-a red car moves from left to right on a city street, at dusk}
picture=$(realpath docs)/streaming.png
columns=7
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cd "$work"

# row NAME FILE...: writes row-NAME.png from at most $columns of the files, evenly chosen, side by side, doubled in size.
row() {
    local name=$1 inputs=() chosen=() count i
    shift
    count=$#
    for ((i = 0; i < columns && i < count; i++)); do
        chosen+=("${@:$((1 + (count <= columns ? i : i * (count - 1) / (columns - 1)))):1}")
    done
    for file in "${chosen[@]}"; do inputs+=(-i "$file"); done
    local filter="" joined=""
    for i in "${!chosen[@]}"; do
        filter+="[$i:v]scale=iw*2:ih*2:flags=neighbor,pad=iw+4:ih+4:2:2:white[p$i];"
        joined+="[p$i]"
    done
    if ((${#chosen[@]} > 1)); then joined+="hstack=inputs=${#chosen[@]}"; else joined+="null"; fi
    ffmpeg -v error -y "${inputs[@]}" -filter_complex "$filter$joined" -frames:v 1 "row-$name.png"
}

rows=()
for kind in rgb tiny full; do
    if "$program" generate "$prompt" --seed 3 --preview "$kind" --preview-out "$kind" -o clip.mp4 2>>log; then
        row "$kind" "$kind"/*.png
        rows+=("row-$kind.png")
    fi
done
ffmpeg -v error -y -i clip.mp4 frame-%02d.png
row frames frame-*.png
rows+=(row-frames.png)
inputs=() filter="" joined=""
for i in "${!rows[@]}"; do
    inputs+=(-i "${rows[$i]}")
    filter+="[$i:v]pad=$((columns * 228)):ih:0:0:white[r$i];"
    joined+="[r$i]"
done
ffmpeg -v error -y "${inputs[@]}" -filter_complex "$filter${joined}vstack=inputs=${#rows[@]}" -frames:v 1 "$picture"
echo "$picture: ${rows[*]}, $(stat -c %s "$picture") bytes"
