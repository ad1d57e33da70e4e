#!/bin/sh
# Mini in ten minutes on one GPU beside a dozen cores: starts `gpu.py` in the background and returns.
#
#   gpu.sh RUN OUT [CHECKPOINT] [VAE]
#
# RUN is a new folder for clips and states (about 30 GB). OUT receives the results while they are made; see `gpu.py`, and
# `gpu_result.py` for what to do with them. Progress is in RUN/log.txt. `touch RUN/PAUSE` stops work on the GPU, and the clock,
# within a second, until that file is removed. PYTHON names the interpreter, RENDERERS the number of processes that render.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
run=$1 out=$2 checkpoint=${3:-$here/../checkpoint} start=${4:-}
mkdir -p "$(dirname "$run")" "$out"
mkdir "$run"
setsid nohup "${PYTHON:-python3}" -u "$here/gpu.py" "$run" "$out" "$checkpoint" --start "$start" ${RENDERERS:+--renderers "$RENDERERS"} \
    > "$run/start.log" 2>&1 < /dev/null &
