"""The clips of `gpu.py`, rendered by many processes while everything else is trained. Nothing here needs PyTorch.

`RUN/render/<kind>-<first>.npz` holds clips u8 `[N,F,H,W,3]` and the masks of their subjects at half size, u8 `[N,F,H/2,W/2]`.
"""

import os
import time

import numpy as np

import world


def smaller(count, least=1):
    """A number of scenes or samples; tests on a CPU divide all of them by `MINI_SMALLER`."""
    return max(least, count // int(os.environ.get("MINI_SMALLER", 1)))


# More clips and stills than any machine renders in ten minutes.
MOST = smaller(70_000, 100)
# first: clips that score the VAE; held: combinations never trained on, which measure the denoiser; score: clips for the judge.
COUNT = {"first": smaller(24, 2), "clip": MOST, "still": MOST, "held": smaller(48, 4), "score": smaller(300, 4)}
BASE = {"first": 0, "clip": 1000, "still": 200_000, "held": 500_000, "score": 900_000}
CHUNK = {"first": smaller(6, 2), "clip": smaller(25, 5), "still": smaller(200, 10), "held": smaller(12, 2), "score": smaller(30, 2)}
# Files of clips that come before all else but the first.
EARLY = smaller(120, 3)


def scene(kind, index):
    """The scene with this number of its kind."""
    return world.numbered(BASE[kind] + index, from_held_out=kind == "held" or (kind == "score" and index % 2 == 1))


def halved(masks):
    quads = masks.reshape(len(masks), world.HEIGHT // 2, 2, world.WIDTH // 2, 2)
    return ((quads.sum((2, 4), dtype=np.uint16) + 2) // 4).astype(np.uint8)


def write(path, arrays):
    partial = f"{path}.partial{os.getpid()}"
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def jobs():
    """What is rendered, in this order."""
    files = {kind: [(kind, first) for first in range(0, COUNT[kind], CHUNK[kind])] for kind in COUNT}
    clips, stills, later = files["clip"], files["still"], []
    early = files["first"] + clips[:EARLY] + files["held"] + files["score"]
    for i, job in enumerate(clips[EARLY:]):
        later.append(job)
        if i % 5 == 0 and stills:
            later.append(stills.pop(0))
    return early + later + stills


def render(job):
    """Renders one file; called in worker processes. Answers with the number of scenes, or with an error as text."""
    run, kind, first, end = job
    try:
        if time.time() > end:
            return 0
        count = min(CHUNK[kind], COUNT[kind] - first)
        frames = 1 if kind == "still" else world.FRAMES
        pairs = [world.render(scene(kind, first + i), frames) for i in range(count)]
        arrays = {"clips": np.stack([clip for clip, _ in pairs]), "masks": np.stack([halved(mask) for _, mask in pairs])}
        write(os.path.join(run, "render", f"{kind}-{first:06}.npz"), arrays)
        return count
    except Exception as error:  # One file less is no reason to stop.
        return f"{kind} {first}: {error!r}"
