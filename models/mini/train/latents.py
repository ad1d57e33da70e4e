"""The latents that the denoiser learns from, and the held-out ones that measure it.

  python latents.py RUN --clips 12000 --stills 24000 [--workers 1]      encodes the shards that are missing

Writes `RUN/latents/<kind>-<first>.npz`: normalised latents f16 `[N,16,T,h,w]` and the subject's share of each latent cell, f16
`[N,T,h,w]`. The scene of row i is `world.numbered(first + i)`, so no captions are stored. Stills are the first frames of further
scenes; T is 1. Held-out clips show combinations that are never trained on.
"""

import argparse
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import loop
import vae
import world
from clips import HELD_OUT, SHARD, Clips

BATCH = 4
# The number of the first scene of each kind; clips begin behind those that measure the VAE.
FIRST = {"clip": 0, "still": 100_000, "held": 500_000}
HELD = 48


def scene(kind, index):
    return world.numbered(index, from_held_out=kind == "held")


def cover(masks):
    """The subject's share of each latent cell: the mean over 8x8 pixels and the frames that the cell stands for."""
    cells = F.avg_pool2d(torch.from_numpy(masks).float() / 255, 8)
    later = cells[:, 1:].unflatten(1, (-1, 4)).mean(2)
    return torch.cat([cells[:, :1], later], 1).half().numpy()


def encode(run, model, kind, indices):
    """Latents and covers of these scenes; clips that are rendered already are read."""
    stored, frames = Clips(run), 1 if kind == "still" else world.FRAMES
    mean, std = (torch.tensor(model.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    latents, covers = [], []
    for start in range(0, len(indices), BATCH):
        pairs = []
        for index in indices[start : start + BATCH]:
            known = kind == "clip" and index in stored
            pairs.append(stored[index] if known else world.render(scene(kind, index), frames))
        clips, masks = (np.stack(part) for part in zip(*pairs))
        latents.append(((vae.encode(model, clips).cpu() - mean) / std).half().numpy())
        covers.append(cover(masks))
        loop.sleep_while_paused(run)
    return {"latents": np.concatenate(latents), "covers": np.concatenate(covers)}


def save_arrays(path, arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def shard_path(run, kind, first):
    return run / "latents" / f"{kind}-{first:06}.npz"


def encode_shard(job):
    run, kind, first = job
    torch.set_num_threads(1)
    count = HELD if kind == "held" else SHARD
    arrays = encode(run, vae.loaded(run / "vae").to(loop.device()).eval(), kind, range(first, first + count))
    loop.write_atomically(shard_path(run, kind, first), lambda path: save_arrays(path, arrays))
    return kind, first


class Latents:
    """The latents encoded so far, in memory; `refresh` picks up new shards."""

    def __init__(self, run):
        self.folder, self.shards, self.rows = run / "latents", {}, {"clip": [], "still": []}
        self.refresh()

    def refresh(self):
        for path in sorted(self.folder.glob("*.npz")):
            kind, first = path.stem.split("-")
            key = kind, int(first)
            if kind in self.rows and key not in self.shards:
                with np.load(path) as shard:
                    self.shards[key] = torch.from_numpy(shard["latents"]), torch.from_numpy(shard["covers"])
                skipped = HELD_OUT if key == ("clip", 0) else 0
                self.rows[kind] += [(key, row) for row in range(skipped, len(self.shards[key][0]))]

    def draw(self, rng, count, still):
        """Scenes, latents f32 `[B,16,T,h,w]`, and covers f32 `[B,1,T,h,w]`; T is 1 for stills.

        The first latent frame of a clip is a still as well."""
        rows = self.rows["clip"] + self.rows["still"] if still else self.rows["clip"]
        frames, scenes, latents, covers = slice(0, 1) if still else slice(None), [], [], []
        for key, row in rng.choices(rows, k=count):
            scenes.append(world.numbered(key[1] + row))
            latents.append(self.shards[key][0][row][:, frames])
            covers.append(self.shards[key][1][row][frames])
        return scenes, torch.stack(latents).float(), torch.stack(covers).float().unsqueeze(1)


def held(run):
    """Scenes, latents and covers of the held-out clips."""
    first = FIRST["held"]
    with np.load(shard_path(run, "held", first)) as shard:
        latents, covers = torch.from_numpy(shard["latents"]).float(), torch.from_numpy(shard["covers"]).float()
    return [scene("held", first + i) for i in range(len(latents))], latents, covers.unsqueeze(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=12_000)
    parser.add_argument("--stills", type=int, default=24_000)
    parser.add_argument("--workers", type=int, help="processes; as many as there are cores if not given")
    args = parser.parse_args()
    (args.run / "latents").mkdir(exist_ok=True)
    counts = {"held": 1, "clip": args.clips, "still": args.stills}
    jobs = [(args.run, kind, FIRST[kind] + i) for kind, count in counts.items() for i in range(0, count, SHARD)]
    jobs = [job for job in jobs if not shard_path(*job).exists()]
    # Workers are started anew, not forked: torch's threads do not survive a fork.
    with get_context("spawn").Pool(args.workers) as pool:
        for kind, first in pool.imap_unordered(encode_shard, jobs, chunksize=1):
            print(f"encoded {kind} {first}", flush=True)


if __name__ == "__main__":
    main()
