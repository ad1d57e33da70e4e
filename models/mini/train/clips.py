"""Rendered clips and the masks of their subjects, in shards that other stages read while more are rendered.

  python clips.py RUN --count 6000 [--workers 1]     renders the shards that are missing

`RUN/clips/<first>.npy` is u8 `[SHARD,F,H,W,3]`, `RUN/masks/<first>.npy` u8 `[SHARD,F,H,W]`. Clip i shows `world.numbered(i)`. The
first `HELD_OUT` clips are never trained on.
"""

import argparse
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import loop
import world

SHARD = 100
HELD_OUT = 24


class Clips:
    """The clips rendered so far. `refresh` picks up new shards."""

    def __init__(self, run):
        self.run, self.shards = Path(run), {}
        self.refresh()

    def refresh(self):
        # The clips of a shard are written after its masks: where they are, both are whole.
        for path in sorted((self.run / "clips").glob("*.npy")):
            if int(path.stem) not in self.shards:
                self.shards[int(path.stem)] = tuple(
                    np.load(self.run / kind / path.name, mmap_mode="r") for kind in ("clips", "masks")
                )

    def __contains__(self, index):
        return index - index % SHARD in self.shards

    def __getitem__(self, index):
        """Clip u8 `[F,H,W,3]` and mask u8 `[F,H,W]`, read from the disk when they are used."""
        clips, masks = self.shards[index - index % SHARD]
        return clips[index % SHARD], masks[index % SHARD]

    def draw(self, rng):
        """The number of a random clip that may be trained on."""
        while True:
            index = rng.choice(list(self.shards)) + rng.randrange(SHARD)
            if index >= HELD_OUT:
                return index


def save_array(path, array):
    """`np.save` to exactly this path: by itself it appends an ending."""
    with open(path, "wb") as file:
        np.save(file, array)


def render_shard(job):
    run, first = job
    pairs = [world.render(world.numbered(first + i)) for i in range(SHARD)]
    for kind, column in (("masks", 1), ("clips", 0)):
        array = np.stack([pair[column] for pair in pairs])
        loop.write_atomically(run / kind / f"{first:06}.npy", lambda path: save_array(path, array))
    return first


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--workers", type=int, help="processes; as many as there are cores if not given")
    args = parser.parse_args()
    for kind in ("clips", "masks"):
        (args.run / kind).mkdir(parents=True, exist_ok=True)
    missing = [first for first in range(0, args.count, SHARD) if not (args.run / "clips" / f"{first:06}.npy").exists()]
    with get_context("spawn").Pool(args.workers) as pool:
        for first in pool.imap_unordered(render_shard, [(args.run, first) for first in missing]):
            print(f"rendered clips {first} to {first + SHARD - 1}", flush=True)


if __name__ == "__main__":
    main()
