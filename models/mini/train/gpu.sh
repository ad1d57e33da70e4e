#!/bin/sh
# All of `run.sh` in about twelve minutes on one GPU beside a dozen cores.  gpu.sh RUN [START], with START as of `run.sh`.
#
# Resumes as `run.sh` does, so a machine that is lent for ten minutes at a time runs it twice.
set -eu
export CLIPS=3000 LATENTS=6000 STILLS=12000
export VAE_MINUTES=3.5 DECODER_MINUTES=0.5 JUDGE_MINUTES=1 TINY_MINUTES=0.5 TEXT_MINUTES=0.5
export DENOISER_MINUTES=3.5 EXPERTS_MINUTES=0.5
exec "$(dirname "$0")/run.sh" "$@"
