#!/bin/sh
# Trains mini from rendering to checkpoint, one stage after another; run it again to go on where it stopped.
#
#   run.sh RUN [START]
#
# RUN is a folder outside the repository. START is a finished checkpoint, whose text encoder is taken instead of trained: captions
# have not changed. Budgets are minutes of work and come from the environment, as do the numbers of clips; larger ones continue a
# finished stage. What was made with an earlier state of it must be removed first: RUN/latents after the VAE's encoder has changed,
# RUN/high.pt and RUN/low.pt after the denoiser. While RUN/PAUSE exists, training sleeps. PYTHON names the interpreter.
set -eu
run=$1 start=${2:-}
clips=${CLIPS:-6000} latents=${LATENTS:-12000} stills=${STILLS:-24000}
vae=${VAE_MINUTES:-90} decoder=${DECODER_MINUTES:-15} tiny=${TINY_MINUTES:-10} judge=${JUDGE_MINUTES:-30}
text=${TEXT_MINUTES:-5} denoiser=${DENOISER_MINUTES:-600} experts=${EXPERTS_MINUTES:-60}
here=$(cd "$(dirname "$0")" && pwd)
stage() {
    script=$1
    shift
    nice -n 10 "${PYTHON:-python3}" -u "$here/$script" "$@"
}

mkdir -p "$run"
stage clips.py "$run" --count "$clips"
stage vae.py train "$run" --minutes "$vae"
stage vae.py score "$run"
stage vae.py decoder "$run" --minutes "$decoder"
stage vae.py score "$run"
stage judge.py train "$run" --minutes "$judge"
stage judge.py score "$run"
stage judge.py export "$run" "$run/judge"
stage latents.py "$run" --clips "$latents" --stills "$stills"
stage tiny.py "$run" --minutes "$tiny"
if [ -n "$start" ]; then
    stage text.py "$run" --minutes 0 --start "$start"
else
    stage text.py "$run" --minutes "$text"
fi
stage denoiser.py "$run" --minutes "$denoiser"
stage experts.py "$run" --minutes "$experts"
stage export.py "$run" "$run/checkpoint"
stage sheet.py "$run/checkpoint" "$run/sheet.png"
stage plot.py "$run/losses.csv" "$run/losses.svg"
