"""The judge of `gpu.py`, trained as `judge.py` trains it, from clips in the device's memory; writes `RUN/judge.safetensors`."""

import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import gpu_scenes
import gpu_shared as shared
import judge
import loop
import world
from gpu_clock import Clock, deadline, falling, say
from gpu_scenes import smaller
from gpu_shared import DEVICE, log

BATCH, GROUP, CAPACITY = smaller(128, 8), 32, smaller(24_000, 100)
PEAK = 3e-3


class Data:
    def __init__(self, run):
        self.rendered, self.filled, self.scored = shared.Rendered(run, "score", "clip"), 0, []
        size = world.HEIGHT // 2, world.WIDTH // 2
        self.clips = torch.zeros(CAPACITY, world.FRAMES, 3, *size, dtype=torch.uint8, device=DEVICE)
        self.masks = torch.zeros(CAPACITY, world.FRAMES, *size, dtype=torch.uint8, device=DEVICE)
        self.told = torch.zeros(CAPACITY, len(judge.NAMES), dtype=torch.long, device=DEVICE)

    def refresh(self, limit):
        for kind, first, arrays in self.rendered.new(limit):
            clips, masks = arrays["clips"].to(DEVICE), arrays["masks"].to(DEVICE)
            told = judge.targets([gpu_scenes.scene(kind, first + i) for i in range(len(clips))]).to(DEVICE)
            if kind == "score":
                self.scored.append((clips, masks, told))
                continue
            room = min(len(clips), CAPACITY - self.filled)
            if not room:
                continue
            small = F.avg_pool2d(clips[:room].permute(0, 1, 4, 2, 3).float().flatten(0, 1), 2).round().byte()
            rows = slice(self.filled, self.filled + room)
            self.clips[rows], self.masks[rows] = small.unflatten(0, (room, -1)), masks[:room]
            self.told[rows] = told[:room]
            self.filled += room


def mirrored_values():
    """For every attribute, the index of each value in a mirror."""
    tables = torch.arange(max(len(values) for values in judge.VALUES.values())).repeat(len(judge.NAMES), 1)
    for row, name in enumerate(judge.NAMES):
        if name in ("action", "camera"):
            values = judge.VALUES[name]
            tables[row, : len(values)] = torch.tensor([values.index(judge.MIRRORED.get(value, value)) for value in values])
    return tables.to(DEVICE)


def batch(data, tables, rng):
    """Worn clips at half size, some with a blob as their subject, and what is right for each."""
    index = torch.randint(data.filled, (BATCH,), device=DEVICE)
    small = data.clips[index].transpose(1, 2).float() / 255
    masks, told = data.masks[index].unsqueeze(1).float() / 255, data.told[index].clone()
    half = torch.arange(BATCH, device=DEVICE) % 2 == 0
    small[half], masks[half] = small[half].flip(-1), masks[half].flip(-1)
    told[half] = torch.stack([tables[i][told[half][:, i]] for i in range(len(judge.NAMES))], 1)
    blobs = round(BATCH * judge.BLURRED)
    for rows in torch.arange(blobs).tensor_split(4):
        if len(rows):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            side, edge = rng.uniform(*judge.UNNAMEABLE) / 2, rng.uniform(*judge.EDGES)
            small[part] = judge.with_blob(small[part], masks[part], side, edge)
    told[:blobs, judge.NAMES.index("subject")] = judge.VALUES["subject"].index(judge.UNCLEAR)
    order = torch.randperm(BATCH, device=DEVICE)
    worn = torch.cat([judge.worn(part, rng) for part in small[order].split(GROUP)])
    return worn, told[order]


@torch.no_grad()
def score(reader, data):
    """The share read back per attribute, and how often a blob of two cells is named."""
    right, named, count, rng = torch.zeros(len(judge.NAMES), device=DEVICE), 0.0, 0, random.Random(0)
    for clips, masks, told in data.scored:
        pixels = clips.float() / 255
        right += torch.stack([(row.argmax(1) == told[:, i]).float().sum() for i, row in enumerate(reader(pixels))])
        cover = F.interpolate(masks.float() / 255, scale_factor=2.0, mode="bilinear").unsqueeze(1)
        blobs = judge.with_blob(pixels.permute(0, 4, 1, 2, 3), cover, judge.BLOB, rng.uniform(*judge.EDGES))
        named += float((reader(blobs.permute(0, 2, 3, 4, 1))[0].argmax(1) == told[:, 0]).float().sum())
        count += len(told)
    return {**{name: float(value) / count for name, value in zip(judge.NAMES, right)}, "blobs_named": named / count}


def main(run):
    shared.set_up()
    torch.backends.cudnn.benchmark = False
    clock, data, path = Clock(run), Data(run), run / "judge.safetensors"
    while clock.now() < deadline("judge_from") or not data.filled:
        clock.rest()
        data.refresh(10)
        time.sleep(0.2)
    reader = judge.Judge().to(DEVICE, memory_format=torch.channels_last_3d)
    if not path.exists():
        if clock.now() > deadline("judge"):
            return
        train(clock, reader.train(), data)
        state = {name: value.contiguous() for name, value in reader.state_dict().items()}
        shared.write_atomically(path, lambda partial: save_file(state, partial))
    reader.load_state_dict(load_file(path))
    if data.scored:
        log(clock, "judge", 0, score(reader.eval(), data))
    say(clock, "judge", "done")


def train(clock, reader, data):
    """Trains until the deadline, and leaves the averaged weights in the reader."""
    optimizer = torch.optim.AdamW(reader.parameters(), lr=PEAK, weight_decay=0.02, fused=shared.ON_GPU)
    average, tables, rng = loop.Average(reader, 300), mirrored_values(), random.Random(1)
    steps, told_at, losses, end = 0, time.time(), [], deadline("judge")
    say(clock, "judge", f"begins with {data.filled} clips")
    while clock.now() < end:
        clock.rest()
        rate = PEAK * min(1.0, (steps + 1) / 100) * max(0.01, falling(clock.share("judge", end), 0.1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if steps % 50 == 0:
            data.refresh(4)
        x, told = batch(data, tables, rng)
        with shared.mixed():
            scores = reader.read(x.contiguous(memory_format=torch.channels_last_3d))
        loss = sum(F.cross_entropy(row.float(), told[:, i], label_smoothing=0.05) for i, row in enumerate(scores))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        optimizer.step()
        average.update(reader, steps)
        steps += 1
        losses.append(loss.detach())
        if time.time() - told_at > 10:
            told_at = time.time()
            right = torch.stack([(row.argmax(1) == told[:, i]).float().mean() for i, row in enumerate(scores)]).tolist()
            values = {"loss": torch.stack(losses).mean().item(), "right": float(np.mean(right)), "right_subject": right[0]}
            log(clock, "judge", steps, {**values, "clips": data.filled})
            losses = []
    average.load_into(reader)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
