"""The tiny decoder of previews, in the published `taew2_1` layout, trained against the VAE's latents.

  python tiny.py RUN --minutes 8         after `latents.py`; writes RUN/tiny_decoder/taew2_1.safetensors

It reads latents at the scale that the denoiser works on. Half of them are softened and speckled: a preview shows an early
guess at the clip, which is both.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import loop
from clips import Clips
from latents import Latents

WIDTHS = (32, 24, 16, 16)
BATCH = 4
# What one sample is cut to: latent frames from the first on, and columns; the rows are all there are.
CUT_FRAMES, CUT_COLUMNS = 2, 8
PEAK = 3e-3


class SoftClamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Sees its input now and one frame earlier (zeros before the first)."""

    def __init__(self, width):
        super().__init__()
        layers = [nn.Conv2d(inner, width, 3, padding=1) for inner in (2 * width, width, width)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, x, past):
        return F.relu(self.conv(torch.cat([x, past], 1)) + x)


class TimeGrowth(nn.Module):
    """One frame to `times` frames, the first group of channels being the earliest."""

    def __init__(self, width, times):
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, x):
        frames, width, height, columns = x.shape
        return self.conv(x).reshape(frames * self.times, width, height, columns)


class TinyDecoder(nn.Module):
    """Latents `[B,16,T,h,w]` to frames `[B,1+4(T-1),3,8h,8w]` in 0..1; module names give the layout's own keys."""

    def __init__(self):
        super().__init__()
        a, b, c, d = WIDTHS

        def stage(width, following, times):
            blocks = [MemoryBlock(width) for _ in range(3)]
            widen = nn.Conv2d(width, following, 3, padding=1, bias=False)
            return [*blocks, nn.Upsample(scale_factor=2), TimeGrowth(width, times), widen]

        begin = [SoftClamp(), nn.Conv2d(16, a, 3, padding=1), nn.ReLU()]
        end = [nn.ReLU(), nn.Conv2d(d, 3, 3, padding=1)]
        self.decoder = nn.Sequential(*begin, *stage(a, b, 1), *stage(b, c, 2), *stage(c, d, 2), *end)

    def forward(self, latents):
        batch = len(latents)
        x = latents.transpose(1, 2).flatten(0, 1)
        for layer in self.decoder:
            if isinstance(layer, MemoryBlock):
                frames = x.unflatten(0, (batch, -1))
                past = F.pad(frames, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
                x = layer(x, past.flatten(0, 1))
            else:
                x = layer(x)
        # A latent frame gives four pictures; the first latent frame stands for one.
        return x.unflatten(0, (batch, -1))[:, 3:]


def worn(latents, rng):
    """Latents as a denoiser guesses them half-way."""
    if rng.random() < 0.5:
        return latents
    if rng.random() < 0.5:
        soft = F.avg_pool3d(latents, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
        latents = torch.lerp(latents, soft, rng.uniform(0.2, 0.8))
    return latents + rng.uniform(0, 0.3) * torch.randn_like(latents)


def difference(made, wanted):
    """Mean absolute difference, of pixels and of edges and, for the colours, of blurred pictures."""
    e = made - wanted
    edge = (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
    return e.abs().mean() + 0.3 * edge + 0.5 * F.avg_pool2d(e.flatten(0, 1), 6, 3).abs().mean()


def samples(data, rows, clips, rng):
    """Latents f32 `[B,16,T,h,w]` and the frames that they stand for, f32 `[B,1+4(T-1),3,8h,8w]` in 0..1."""
    latents, wanted = [], []
    for key, row in rng.choices(rows, k=loop.batch_size(BATCH)):
        cells = data.shards[key][0][row]
        left = rng.randint(0, cells.shape[-1] - CUT_COLUMNS)
        latents.append(cells[:, :CUT_FRAMES, :, left : left + CUT_COLUMNS])
        clip, _ = clips[key[1] + row]
        wanted.append(clip[: 4 * CUT_FRAMES - 3, :, 8 * left : 8 * (left + CUT_COLUMNS)])
    frames = torch.from_numpy(np.stack(wanted)).permute(0, 1, 4, 2, 3).float() / 255
    return torch.stack(latents).float(), frames


def train(run, minutes):
    torch.manual_seed(4)
    where = loop.device()
    clips, data = Clips(run), Latents(run)
    rows = [(key, row) for key, row in data.rows["clip"] if key[1] + row in clips]
    decoder = TinyDecoder().to(where, memory_format=torch.channels_last).train()
    stage = loop.Stage(run, "tiny", minutes)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=PEAK, weight_decay=0, betas=(0.9, 0.99))
    average = loop.Average(decoder, 300)
    if state := stage.resume():
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        average.values = {name: value.to(where) for name, value in state["average"].items()}

    def snapshot():
        return {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}

    rng = random.Random(stage.step)
    while stage.share() < 1:
        for group in optimizer.param_groups:
            group["lr"] = loop.rate(stage, PEAK)
        latents, wanted = (tensor.to(where) for tensor in samples(data, rows, clips, rng))
        with torch.autocast(where.type, torch.bfloat16):
            made = decoder(worn(latents, rng).contiguous()).float()
        loss = difference(made, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        average.update(decoder, stage.step)
        psnr = -10 * torch.log10(((made.detach().clamp(0, 1) - wanted) ** 2).mean())
        stage.tick({"loss": loss, "psnr": psnr}, snapshot)
    stage.save(snapshot())
    folder = run / "tiny_decoder"
    folder.mkdir(exist_ok=True)
    tensors = {name: value.half().cpu().contiguous() for name, value in average.values.items()}
    save_file(tensors, folder / "taew2_1.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    args = parser.parse_args()
    train(args.run, args.minutes)


if __name__ == "__main__":
    main()
