"""Tiny preview decoders in the published `taew2_1` and `taew2_2` layouts, with random weights, and what torch makes of them.

Written from the layout's description: module names give the key names of the files.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn


class SoftClamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Sees its input at this time step and at the one before (zeros before the first)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x, past):
        return F.relu(self.conv(torch.cat([x, past], 1)) + x)


class TimeGrowth(nn.Module):
    """One frame to `times` frames. Of weights for more frames than that, the last are used."""

    def __init__(self, width: int, times: int, stored: int):
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(width, width * stored, 1, bias=False)

    def forward(self, x):
        frames, width, height, columns = x.shape
        grown = F.conv2d(x, self.conv.weight[-width * self.times :])
        return grown.reshape(frames * self.times, width, height, columns)


class TinyDecoder(nn.Module):
    """`patch` 1 is taew2_1 (8 pixels per latent position), 2 is taew2_2 (16 pixels)."""

    def __init__(self, latent_channels: int, widths: tuple, patch: int, stored_growth: tuple):
        super().__init__()
        a, b, c, d = widths
        self.patch = patch

        def conv(channels, out, bias=True):
            return nn.Conv2d(channels, out, 3, padding=1, bias=bias)

        def stage(width, out, times, stored):
            blocks = [MemoryBlock(width) for _ in range(3)]
            return [*blocks, nn.Upsample(scale_factor=2), TimeGrowth(width, times, stored), conv(width, out, bias=False)]

        self.decoder = nn.Sequential(
            *[SoftClamp(), conv(latent_channels, a), nn.ReLU()],
            *stage(a, b, 1, stored_growth[0]),
            *stage(b, c, 2, stored_growth[1]),
            *stage(c, d, 2, stored_growth[2]),
            *[nn.ReLU(), conv(d, 3 * patch * patch)],
        )

    def forward(self, latent, clamp: bool = True):
        """`[C,T,h,w]` at model scale to frames `[4T-3,3,8·patch·h,8·patch·w]` in 0..1."""
        x = latent.transpose(0, 1)
        for layer in self.decoder:
            if isinstance(layer, MemoryBlock):
                x = layer(x, F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1])
            else:
                x = layer(x)
        if self.patch > 1:
            x = F.pixel_shuffle(x, self.patch)
        # Four frames for each latent frame, of which the first stands for one.
        return x[3:].clamp(0, 1) if clamp else x[3:]


def make(folder: Path) -> None:
    """`taew2_1` in f16 with growth weights for more frames than needed, `taew2_2` in f32."""
    folder.mkdir(exist_ok=True)
    layouts = {
        "taew2_1": (TinyDecoder(16, (4, 3, 3, 2), 1, (1, 3, 2)), torch.float16),
        "taew2_2": (TinyDecoder(48, (3, 3, 2, 2), 2, (1, 2, 2)), torch.float32),
    }
    tensors = {}
    for seed, (name, (decoder, dtype)) in enumerate(layouts.items()):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in decoder.parameters():
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
                drawn = torch.randn(parameter.shape, generator=generator) * (1.6 / fan_in**0.5)
                parameter.copy_(drawn.to(dtype).float())
            latent = torch.randn((decoder.decoder[1].in_channels, 3, 3, 2), generator=generator)
            # Around the middle of the range, so that little is clamped.
            last = decoder.decoder[22]
            last.bias.zero_()
            frames = decoder(latent, clamp=False)
            scale = 0.25 / frames.std()
            last.weight.copy_((last.weight * scale).to(dtype).float())
            last.bias.fill_((0.5 - scale * frames.mean()).to(dtype).float())
            frames = decoder(latent)
        inside = ((frames > 0) & (frames < 1)).float().mean().item()
        assert frames.std() > 0.02 and inside > 0.6, f"{name}: deviation {frames.std():.3f}, unclamped {inside:.1%}"
        assert (frames[1:] - frames[:-1]).abs().mean() > 1e-3, f"{name}: still frames"
        state = {key: value.detach().to(dtype).contiguous() for key, value in decoder.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
        tensors |= {f"{name}.latent": latent.contiguous(), f"{name}.frames": frames.contiguous()}
        print(f"{name}: {list(frames.shape)}, deviation {frames.std():.3f}, unclamped {inside:.1%}")
    save_file(tensors, folder / "reference.safetensors")
