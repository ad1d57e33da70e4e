"""The two experts: copies of the denoiser's average, each continued on its own side of the boundary, on clips alone.

  python experts.py RUN --minutes 60       for both together; writes RUN/high and RUN/low
  python experts.py RUN --minutes 60 --start CHECKPOINT      goes on from the experts of a checkpoint with the same VAE

With `--minutes 0` it only splits: two equal experts. `--only high` or `--only low` trains one of them, in half of the minutes.
"""

import argparse
from pathlib import Path

from diffusers import WanTransformer3DModel

import denoiser
from export import BOUNDARY

PEAK = 6e-4
RANGES = {"high": (BOUNDARY, 1.0), "low": (0.0, BOUNDARY)}
FOLDERS = {"high": "transformer", "low": "transformer_2"}


def starting(run, checkpoint, name):
    """The weights that an expert begins with."""
    if checkpoint:
        return WanTransformer3DModel.from_pretrained(checkpoint / FOLDERS[name]).float().state_dict()
    return denoiser.averaged(run)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--only", choices=list(RANGES))
    args = parser.parse_args()
    for name in [args.only] if args.only else RANGES:
        start, (low, high) = starting(args.run, args.start, name), RANGES[name]
        denoiser.train(args.run, name, args.minutes / 2, start, low, high, peak=PEAK, hold=0.0, stills=(0.0, 0.0))


if __name__ == "__main__":
    main()
