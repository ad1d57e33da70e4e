"""Captions of the scenes of `gpu.py` as token ids: several for each scene, drawn in advance by processes of their own.

`RUN/captions/<kind>-<first>.npz` holds ids u16 `[N,K,ROWS]` and lengths u8 `[N,K]`. The last file, `drop-000000`, holds what stands
for no caption.
"""

import random
import sys
from pathlib import Path

import numpy as np

import captions
import gpu_clock
import gpu_scenes
import tokenizer

ROWS = 39
# Held-out scenes have one caption, so that every measurement meets the same.
VARIANTS = {"clip": 8, "still": 3, "held": 1}
CHUNK = gpu_scenes.smaller(500, 20)
DROPPED = ["", "", "", tokenizer.NEGATIVE, tokenizer.NEGATIVE_ZH]


def ids_of(texts, pieces):
    ids, lengths = np.zeros((len(texts), ROWS), np.uint16), np.zeros(len(texts), np.uint8)
    for row, encoding in enumerate(pieces.encode_batch(texts)):
        found = encoding.ids[:ROWS]
        ids[row, : len(found)], lengths[row] = found, len(found)
    return ids, lengths


def fitting(scene, rng, pieces):
    while True:
        text = captions.draw(scene, rng, 0.0)[0]
        if len(pieces.encode(text).ids) <= ROWS:
            return text


def write(run, kind, first, count, pieces):
    variants, rng = VARIANTS[kind], random.Random(7 * first + len(kind))
    count = min(count, gpu_scenes.COUNT[kind] - first)
    scenes = [gpu_scenes.scene(kind, first + i) for i in range(count)]
    texts = [fitting(scene, rng, pieces) for scene in scenes for _ in range(variants)]
    ids, lengths = ids_of(texts, pieces)
    arrays = {"ids": ids.reshape(count, variants, ROWS), "lengths": lengths.reshape(count, variants)}
    gpu_scenes.write(run / "captions" / f"{kind}-{first:06}.npz", arrays)


def main(run, checkpoint, part, parts):
    clock = gpu_clock.Clock(run)
    pieces = tokenizer.load(checkpoint / "tokenizer")
    if part == 0:
        ids, lengths = ids_of([captions.prompt_clean(text) for text in DROPPED], pieces)
        gpu_scenes.write(run / "captions" / "drop-000000.npz", {"ids": ids[None], "lengths": lengths[None]})
        write(run, "held", 0, gpu_scenes.COUNT["held"], pieces)
    jobs = [(kind, first) for first in range(0, gpu_scenes.MOST, CHUNK) for kind in ("clip", "still")]
    for kind, first in jobs[part::parts]:
        if clock.now() > gpu_clock.deadline("render"):
            break
        write(run, kind, first, CHUNK, pieces)
    gpu_clock.say(clock, "captions", f"part {part} done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
