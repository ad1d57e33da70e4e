"""The denoiser, one over all noise levels, trained together with the text encoder on the latents of `vae.py`.

Flow matching: x = (1-s) x0 + s e, and the network predicts v = e - x0. Sigmas follow the grid that sampling uses (uniform
steps shifted by 5), mixed with uniform ones, which give the last steps enough to learn from.

Stills first: a clip's first latent frame is a picture of its own and a fifth of the tokens, so batches of such stills teach what
things look like at a fifth of the price. They are most of the batches at the start and few at the end.

  python denoiser.py RUN --minutes 75 [--until TIME] [--start CHECKPOINT]

`--start` begins with the experts of a finished checkpoint, averaged, instead of random weights.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

import architecture
import attention
import loop
import text
import tokenizer
import world
from export import SHIFT
from vae import STILLS_FROM

BATCH = 16
STILLS_BATCH = 64
PEAK = 1e-3
UNIFORM_SHARE = 0.3
MASK_WEIGHT = 2.0
READOUT_WEIGHT = 0.02


def prepare(denoiser):
    """Starting weights. As Wan: Xavier for every linear map, zeros for the head.

    Zero rows have zero keys, thus score 0, and there are about 490 of them: the larger scale of normalised queries and keys
    of the cross attention lets the few real rows outweigh them from the start."""
    for module in denoiser.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(denoiser.proj_out.weight)
    for block in denoiser.blocks:
        nn.init.constant_(block.attn2.norm_q.weight, 2.0)
        nn.init.constant_(block.attn2.norm_k.weight, 2.0)


class Latents:
    """The shards written so far; new ones are picked up as they appear."""

    def __init__(self, run):
        self.folder, self.shards = run / "latents", {}
        self.refresh()

    def refresh(self):
        for path in self.folder.glob("*.npz"):
            if int(path.stem) not in self.shards:
                shard = np.load(path)
                self.shards[int(path.stem)] = torch.from_numpy(shard["latents"]), torch.from_numpy(shard["covers"])
        self.clips = [first for first in self.shards if first < STILLS_FROM]

    def draw(self, rng, count, still=False):
        """Scenes, latents f32 `[B,16,T,h,w]`, and the subject's share of each latent cell f32 `[B,1,T,h,w]`; T is 1 for stills."""
        scenes, latents, covers = [], [], []
        frames = slice(0, 1) if still else slice(None)
        for _ in range(count):
            # The first latent frame of a clip is a still as well.
            first = rng.choice(list(self.shards) if still else self.clips)
            shard, share = self.shards[first]
            row = rng.randrange(len(shard))
            scenes.append(world.numbered(first + row))
            latents.append(shard[row][:, frames])
            covers.append(share[row][frames])
        return scenes, torch.stack(latents).float(), torch.stack(covers).float().unsqueeze(1)


def sigmas(count, low, high, where):
    """Noise levels in `low..high`, `[B,1,1,1,1]`: one from each of `count` equal parts, so that every batch sees all levels.

    The parts are equal in the mixed distribution of the module's description, cut to the range."""
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)
    # Distribution function of sigma: under the shift s, P(sigma <= x) = x / (s - (s - 1) x).
    mass = UNIFORM_SHARE * grid + (1 - UNIFORM_SHARE) * grid / (SHIFT - (SHIFT - 1) * grid)
    bottom, top = (float(np.interp(edge, grid, mass)) for edge in (low, high))
    u = (torch.randperm(count) + torch.rand(count)) / count
    values = np.interp((bottom + u * (top - bottom)).numpy(), mass, grid)
    return torch.from_numpy(values).float().view(-1, 1, 1, 1, 1).to(where)


def velocity_loss(denoiser, processor, batch, states, lengths, low=0.0, high=1.0):
    """The squared error of the velocity, the subject's cells weighing more; and without weights, for the log."""
    latents, covers = batch
    noise = torch.randn_like(latents)
    sigma = sigmas(len(latents), low, high, latents.device)
    rows, processor.bias = attention.merged(states, lengths)
    with torch.autocast(latents.device.type, torch.bfloat16):
        # Timesteps are whole numbers in use.
        time = (sigma.flatten() * 1000).floor()
        predicted = denoiser(latents + sigma * (noise - latents), time, rows, return_dict=False)[0].float()
    error = (predicted - (noise - latents)) ** 2
    weight = 1 + MASK_WEIGHT * covers
    return (weight * error).mean() / weight.mean(), error.detach().mean()


def is_still(stage):
    """Whether this step's batch is of stills: three of four in the first third, then one of six."""
    return stage.step % 4 != 0 if stage.share() < 0.33 else stage.step % 6 == 0


def started_from(checkpoint):
    """The mean of a checkpoint's two experts, and its text encoder."""
    high, low = (WanTransformer3DModel.from_pretrained(checkpoint / name).state_dict() for name in ("transformer", "transformer_2"))
    mean = {name: (value.float() + low[name].float()) / 2 for name, value in high.items()}
    return mean, UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder").float().state_dict()


def move(state, where):
    return {name: value.to(where) for name, value in state.items()}


def train(run, minutes, until, checkpoint=None):
    """Trains denoiser and text encoder; the state is `RUN/denoiser.pt`, with averages of both."""
    torch.manual_seed(1)
    where = loop.device()
    pieces = tokenizer.load(run / "tokenizer")
    denoiser, readout = architecture.denoiser(), text.Readout()
    encoder = architecture.text_encoder(pieces.get_vocab_size())
    prepare(denoiser)
    start = torch.load(run / "text.pt", map_location="cpu", weights_only=True)["state"]
    encoder.load_state_dict(start["encoder"])
    readout.load_state_dict(start["readout"])
    if checkpoint:
        denoiser.load_state_dict(started_from(checkpoint)[0])
    processor = attention.install(denoiser, compiled=True)
    for module in (denoiser, encoder, readout):
        module.to(where).train()
    groups = [
        {"params": list(denoiser.parameters()), "peak": PEAK},
        {"params": [*encoder.parameters(), *readout.parameters()], "peak": PEAK / 4},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, weight_decay=0.01, betas=(0.9, 0.98))
    averages = loop.Average(denoiser), loop.Average(encoder)
    stage = loop.Stage(run, "denoiser", minutes, until)
    if state := stage.resume():
        for module, name in ((denoiser, "denoiser"), (encoder, "encoder"), (readout, "readout")):
            module.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        for average, name in zip(averages, ("denoiser_average", "encoder_average")):
            average.values = move(state[name], where)

    def snapshot():
        return {
            "denoiser": denoiser.state_dict(),
            "encoder": encoder.state_dict(),
            "readout": readout.state_dict(),
            "optimizer": optimizer.state_dict(),
            "denoiser_average": averages[0].values,
            "encoder_average": averages[1].values,
        }

    rng = random.Random(stage.step)
    torch.manual_seed(1 + stage.step)
    data = Latents(run)
    while stage.share() < 1:
        for group in optimizer.param_groups:
            group["lr"] = loop.rate(stage, group["peak"], warm_up=200, hold=0.4)
        if stage.step % 200 == 0:
            data.refresh()
        still = is_still(stage)
        scenes, *batch = data.draw(rng, STILLS_BATCH if still else BATCH, still)
        ids, lengths, told = text.draw_batch(scenes, rng, pieces, where)
        with torch.autocast(where.type, torch.bfloat16):
            states = text.encode(encoder, ids, lengths)
        states = states.float()
        loss, plain = velocity_loss(denoiser, processor, [tensor.to(where) for tensor in batch], states, lengths)
        reading, right = readout(states, lengths, told)
        optimizer.zero_grad()
        (loss + READOUT_WEIGHT * reading).backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        averages[0].update(denoiser, stage.step)
        averages[1].update(encoder, stage.step)
        names = ("still_loss", "still_velocity") if still else ("loss", "velocity")
        stage.tick({**dict(zip(names, (loss, plain))), "right": right}, snapshot)
    stage.save(snapshot())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--until", type=loop.moment)
    parser.add_argument("--start", type=Path)
    args = parser.parse_args()
    train(args.run, args.minutes, args.until, args.start)


if __name__ == "__main__":
    main()
