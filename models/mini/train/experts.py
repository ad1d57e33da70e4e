"""The two experts: copies of the denoiser's average, each continued on its own side of the boundary, on clips alone.

  python experts.py RUN --minutes 60       for both together; writes RUN/high and RUN/low

With `--minutes 0` it only splits: two equal experts.
"""

import argparse
from pathlib import Path

import denoiser
from export import BOUNDARY

PEAK = 6e-4
RANGES = {"high": (BOUNDARY, 1.0), "low": (0.0, BOUNDARY)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    start = denoiser.averaged(args.run)
    for name, (low, high) in RANGES.items():
        denoiser.train(args.run, name, args.minutes / 2, start, low, high, peak=PEAK, hold=0.0, stills=(0.0, 0.0))


if __name__ == "__main__":
    main()
