"""The VAE, trained on rendered clips, and the latents of many clips.

  python vae.py clips   RUN --count 4200                renders the clips to train on
  python vae.py train   RUN --minutes 40 [--start DIR]  trains, from the weights in DIR if given
  python vae.py train   RUN --minutes 30 --start RUN/vae --decoder-only    continues the decoder alone
  python vae.py score   RUN                             PSNR on held-out clips, a picture, latent mean and standard deviation
  python vae.py latents RUN --count 20000               encodes that many clips for the denoiser, resumable

Without weights to start from, it trains on stills first (the first 40 % of the time), then on clips:
- On one frame a causal 3-D convolution is its last temporal tap, so stills train with 2-D convolutions, three times faster.
- Stills leave the other taps at their random start, which would wreck the first steps on clips. `inflate` sets them to zero
  and the temporal resampling to the identity: the clip VAE starts as good as the still VAE on every frame.
- The loss is weighted by local contrast and by the subject's mask: a prompt is judged by its subject, and that is 7 % of the
  pixels. A term on blurred differences holds the colours.
"""

import argparse
import json
import math
from multiprocessing import Pool, get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from PIL import Image

import loop
import world

CONFIG = dict(
    base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[], temperal_downsample=[False, True, True]
)
HELD_OUT = 200  # the last clips are never trained on
CROP = 48
STILLS_SHARE = 0.4
SHARD = 500
causal_forward = wan.WanCausalConv3d.forward


def still_forward(conv, x, cache_x=None):
    """The causal convolution on a single frame: only the last temporal tap meets data, the others meet zero padding."""
    if x.shape[2] != 1 or cache_x is not None or conv.stride[0] != 1:
        return causal_forward(conv, x, cache_x)
    padding = (conv._padding[2], conv._padding[0])
    return F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, conv.stride[1:], padding).unsqueeze(2)


@torch.no_grad()
def inflate(vae):
    """Makes a VAE trained on stills treat every frame of a clip as such a still."""
    for module in vae.modules():
        if isinstance(module, wan.WanCausalConv3d) and module.kernel_size[0] > 1:
            module.weight[:, :, :-1] = 0
        if isinstance(module, wan.WanResample) and hasattr(module, "time_conv"):
            conv = module.time_conv
            conv.weight.zero_()
            conv.bias.zero_()
            channels = conv.weight.shape[1]
            for half in range(conv.weight.shape[0] // channels):
                conv.weight[half * channels : (half + 1) * channels, :, -1, 0, 0] = torch.eye(channels)
    return vae


def channels_last(vae):
    """The same convolutions with channels innermost in memory: a quarter faster to train and half the time to encode on CPUs."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return vae


def rendered(index):
    return world.render(world.numbered(index))


def render_clips(run, count):
    """Renders clips and masks into `clips.npy` u8 `[N,F,H,W,3]` and `masks.npy` u8 `[N,F,H,W]`."""
    with Pool() as pool:
        pairs = pool.map(rendered, range(count), chunksize=32)
    for name, column in (("clips", 0), ("masks", 1)):
        loop.write_atomically(run / f"{name}.npy", lambda path: save_array(path, np.stack([pair[column] for pair in pairs])))


def save_array(path, array):
    with open(path, "wb") as file:
        np.save(file, array)


def as_video(clips):
    """u8 `[N,F,H,W,3]` to f32 `[N,3,F,H,W]` in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def crops(clips, masks, rng, batch, frames):
    """Random crops, half of them around a point of the subject, with the subject's mask f32 `[N,1,F,h,w]` in 0..1."""
    videos, covers = [], []
    for _ in range(batch):
        i, t = rng.integers(0, len(clips) - HELD_OUT), rng.integers(0, clips.shape[1] - frames + 1)
        y, x = rng.integers(0, clips.shape[2] - CROP + 1), rng.integers(0, clips.shape[3] - CROP + 1)
        points = np.argwhere(masks[i, t + frames // 2] > 127)
        if len(points) and rng.random() < 0.5:
            py, px = points[rng.integers(len(points))]
            y = int(np.clip(py - CROP // 2, 0, clips.shape[2] - CROP))
            x = int(np.clip(px - CROP // 2, 0, clips.shape[3] - CROP))
        window = (i, slice(t, t + frames), slice(y, y + CROP), slice(x, x + CROP))
        videos.append(clips[window])
        covers.append(masks[window])
    return as_video(np.stack(videos)), torch.from_numpy(np.stack(covers)).unsqueeze(1).float() / 255


def reconstruction_loss(y, x, mask):
    """Differences weighted by local contrast and subject, plus edges, plus blurred differences, which are colour errors."""
    e = y - x
    contrast = (x - F.avg_pool3d(x, (1, 13, 13), 1, (0, 6, 6))).abs().mean(1, keepdim=True)
    weight = 1 + 6 * contrast + 2 * mask
    edge = (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
    blurred = (F.avg_pool3d(e, (1, 6, 6), (1, 3, 3)).abs() * (1 + 3 * F.avg_pool3d(mask, (1, 6, 6), (1, 3, 3)))).mean()
    return (weight * e.abs()).mean() + 0.5 * (weight * e**2).mean() + 0.3 * edge + 0.5 * blurred


def train(run, minutes, start, decoder_only):
    """Trains and writes the weights to `RUN/vae`.

    With `decoder_only` the encoder of `start` stays as it is: latents and denoisers made with it stay valid. That is a stage of
    its own, `decoder`, and its result `RUN/vae-decoder`."""
    torch.manual_seed(0)
    where = loop.device()
    clips, masks = (np.load(run / f"{name}.npy", mmap_mode="r") for name in ("clips", "masks"))
    stage = loop.Stage(run, "decoder" if decoder_only else "vae", minutes)
    vae = AutoencoderKLWan.from_pretrained(start) if start else AutoencoderKLWan(**CONFIG)
    vae.float().to(where).train()
    average = loop.Average(vae, 500)
    peak = 6e-4 if start else 2e-3
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, weight_decay=0, betas=(0.9, 0.99))
    stills = not start
    if state := stage.resume():
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, stills = state["average"], state["stills"]
    channels_last(vae)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(not decoder_only)
    rng = np.random.default_rng(stage.step)

    def snapshot():
        return {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values, "stills": stills}

    while stage.share() < 1:
        if stills and stage.share() >= STILLS_SHARE:
            channels_last(inflate(vae))
            average, stills, peak = loop.Average(vae, 500), False, 6e-4
        # One batch in four sees whole-length clips: late frames lean on a longer history.
        batch, frames = (32, 1) if stills else (2, clips.shape[1]) if stage.step % 4 == 0 else (4, 9)
        wan.WanCausalConv3d.forward = still_forward if stills else causal_forward
        for group in optimizer.param_groups:
            group["lr"] = loop.rate(stage, peak)
        x, mask = (tensor.to(where) for tensor in crops(clips, masks, rng, batch, frames))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(where.type, torch.bfloat16):
            with torch.set_grad_enabled(not decoder_only):
                z = vae.encode(x).latent_dist.mean.float()
            # Noise on the latents: the decoder must forgive what the denoiser will get slightly wrong.
            y = vae.decode(z + 0.1 * torch.randn_like(z)).sample.float()
        loss = reconstruction_loss(y, x, mask) + 1e-4 * (z**2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae, stage.step)
        e2 = (y.detach() - x) ** 2
        subject = (e2 * mask).sum() / (3 * mask.sum() + 1)
        losses = {"loss": loss, "psnr": -10 * math.log10(e2.mean() / 4), "subject_psnr": -10 * math.log10(subject / 4 + 1e-6)}
        stage.tick(losses, snapshot)
    stage.save(snapshot())
    average.load_into(vae).save_pretrained(run / ("vae-decoder" if decoder_only else "vae"))


@torch.no_grad()
def score(run, count=24):
    """PSNR of held-out clips; measures the latents and writes their mean and standard deviation into the VAE's config."""
    vae = channels_last(AutoencoderKLWan.from_pretrained(run / "vae")).eval()
    clips, masks = (np.load(run / f"{name}.npy", mmap_mode="r") for name in ("clips", "masks"))
    whole, subjects, latents, rows = [], [], [], []
    for i in range(len(clips) - HELD_OUT, len(clips) - HELD_OUT + count):
        x, mask = as_video(clips[i : i + 1]), torch.from_numpy(np.array(masks[i])) / 255
        z = vae.encode(x).latent_dist.mean
        y = vae.decode(z).sample.clamp(-1, 1)
        e2 = (y - x)[0] ** 2
        whole.append(-10 * math.log10(e2.mean() / 4))
        subjects.append(-10 * math.log10((e2 * mask).sum() / (3 * mask.sum()) / 4))
        latents.append(z[0].flatten(1))
        if len(rows) < 8:
            pair = [((v[0, :, t] + 1) * 127.5).permute(1, 2, 0).byte().numpy() for t in (0, 8, 16) for v in (x, y)]
            rows.append(np.concatenate(pair, 1))
    Image.fromarray(np.concatenate(rows)).save(run / "vae.png")
    latents = torch.cat(latents, 1)
    path = run / "vae" / "config.json"
    config = json.loads(path.read_text())
    config["latents_mean"] = [round(value, 4) for value in latents.mean(1).tolist()]
    config["latents_std"] = [round(value, 4) for value in latents.std(1).tolist()]
    loop.write_atomically(path, lambda partial: partial.write_text(json.dumps(config, indent=2) + "\n"))
    result = {"psnr": np.mean(whole), "worst": min(whole), "subject": np.mean(subjects), "subject_worst": min(subjects)}
    (run / "vae-score.json").write_text(json.dumps({name: round(float(value), 2) for name, value in result.items()}) + "\n")
    print(f"held-out clips: {result}; latent std {config['latents_std']}")


@torch.no_grad()
def encode_shard(run, first, vae, batch=4):
    """Normalised latents of `SHARD` clips, f16 `[N,16,T,h,w]`, and the subject's share of each latent cell, f16 `[N,T,h,w]`,
    as `latents/<first>.npz`. The scene of clip i is `world.numbered(i)`, so no captions are stored."""
    where = next(vae.parameters()).device
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    latents, covers = [], []
    for start in range(first, first + SHARD, batch):
        clips, masks = zip(*(rendered(index) for index in range(start, start + batch)))
        x = as_video(np.stack(clips)).to(where).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(where.type, torch.bfloat16):
            z = vae.encode(x).latent_dist.mean.float().cpu()
        latents.append(((z - mean) / std).half().numpy())
        covers.append(cover(np.stack(masks)))
        loop.sleep_while_paused(run)
    arrays = {"latents": np.concatenate(latents), "covers": np.concatenate(covers)}
    loop.write_atomically(run / "latents" / f"{first:05}.npz", lambda path: save_arrays(path, arrays))


def encode_in_worker(job):
    run, first = job
    torch.set_num_threads(1)
    encode_shard(run, first, channels_last(AutoencoderKLWan.from_pretrained(run / "vae")).eval())
    return first


def encode_clips(run, count):
    """Encodes the shards that are missing: on a GPU one after another, else one process for each core."""
    (run / "latents").mkdir(exist_ok=True)
    missing = [first for first in range(0, count, SHARD) if not (run / "latents" / f"{first:05}.npz").exists()]
    if loop.device().type == "cuda":
        vae = AutoencoderKLWan.from_pretrained(run / "vae").to(loop.device()).eval()
        for first in missing:
            encode_shard(run, first, vae, 32)
        return
    # Workers are started anew, not forked: torch's threads do not survive a fork.
    with get_context("spawn").Pool() as pool:
        for first in pool.imap_unordered(encode_in_worker, [(run, first) for first in missing], chunksize=1):
            print(f"latents of clips {first} to {first + SHARD - 1}", flush=True)


def cover(masks):
    """The subject's share of each latent cell: the mean over 8x8 pixels and the frames that the cell stands for."""
    cells = F.avg_pool2d(torch.from_numpy(masks).float() / 255, 8)
    later = cells[:, 1:].unflatten(1, (-1, 4)).mean(2)
    return torch.cat([cells[:, :1], later], 1).half().numpy()


def save_arrays(path, arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["clips", "train", "score", "latents"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=4200)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--decoder-only", action="store_true")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    if args.what == "clips":
        render_clips(args.run, args.count)
    elif args.what == "train":
        train(args.run, args.minutes, args.start, args.decoder_only)
    elif args.what == "score":
        score(args.run)
    else:
        encode_clips(args.run, args.count)


if __name__ == "__main__":
    main()
