"""Vectors for unit tests that need no model: torch's CPU normal generator and diffusers' prompt cleaning."""

import torch

from .schedules import decimals

# torch takes another path below 16 values, and redraws the last 16 when the size is not a multiple of 16.
SIZES = [1, 2, 5, 15, 16, 17, 24, 31, 32, 100, 1000]
SEEDS = [0, 1, 42, 2**31, 2**32 + 1, 2**53 + 1]
SHOWN_WHOLE = 32
SHOWN_ENDS = 20


def randn() -> list[dict]:
    """`{seed, size, first, last}`: all values in `first` up to size 32, else the first and last 20."""
    entries = []
    for seed in SEEDS:
        for size in SIZES:
            values = torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed))
            whole = size <= SHOWN_WHOLE
            entries.append(
                {
                    "seed": seed,
                    "size": size,
                    "first": decimals(values if whole else values[:SHOWN_ENDS]),
                    "last": [] if whole else decimals(values[-SHOWN_ENDS:]),
                }
            )
    return entries
