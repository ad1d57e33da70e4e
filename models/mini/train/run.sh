#!/bin/sh
# Trains mini from rendering to checkpoint, one stage after another; run it again to go on where it stopped.
#
#   run.sh RUN [VAE_MINUTES] [TEXT_MINUTES] [DENOISER_MINUTES] [EXPERTS_MINUTES] [CLIPS] [START]
#
# RUN is a folder outside the repository. START is a finished checkpoint whose weights every stage begins with. PYTHON names
# the interpreter. While RUN/PAUSE exists, training sleeps. Larger minutes for a finished stage continue it; a VAE trained
# further needs its latents encoded again (remove RUN/latents), or only its decoder trained (see vae.py).
set -eu
run=$1 vae=${2:-90} text=${3:-5} denoiser=${4:-240} experts=${5:-60} clips=${6:-20000} start=${7:-}
here=$(cd "$(dirname "$0")" && pwd)
stage() {
    script=$1
    shift
    nice -n 10 "${PYTHON:-python3}" -u "$here/$script" "$@"
}

mkdir -p "$run"
[ -f "$run/masks.npy" ] || stage vae.py clips "$run"
stage vae.py train "$run" --minutes "$vae" ${start:+--start "$start/vae"}
stage vae.py score "$run"
stage vae.py latents "$run" --count "$clips"
stage tiny.py "$run" --minutes 8
[ -f "$run/judge-clips.npy" ] || stage judge.py clips "$run"
stage judge.py train "$run" --minutes 30
stage judge.py score "$run"
stage judge.py export "$run" "$run/judge"
stage text.py "$run" --minutes "$text" ${start:+--start "$start"}
stage denoiser.py "$run" --minutes "$denoiser" ${start:+--start "$start"}
stage experts.py "$run" --minutes "$experts"
stage export.py "$run" "$run/checkpoint"
stage sheet.py "$run/checkpoint" "$run/sheet.png"
stage plot.py "$run/losses.csv" "$run/losses.svg"
