"""Starting weights for a denoiser on the latents of a new VAE: those of a finished checkpoint, behind a linear map of latents.

  python remap.py RUN CHECKPOINT         after `vae.py`; writes RUN/start, which `denoiser.py --start` begins with

Latents of two VAEs of one shape are nearly linear in each other, cell by cell. The map from new to old latents goes into the patch
embedding, the map back into the head. The noise is mapped as well, so the noise levels do not agree: this is a start, no result.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

import architecture
import vae
from clips import HELD_OUT, Clips

MEASURED = 40
# Directions that one VAE does not use are not to be amplified: a share of the variance is added to all.
RIDGE = 0.02


def normalised(model, z):
    """Latents `[1,16,T,h,w]` as the denoiser sees them, one column per cell, `[16,N]`."""
    mean, std = (torch.tensor(model.config[name])[:, None] for name in ("latents_mean", "latents_std"))
    return (z[0].flatten(1) - mean) / std


@torch.no_grad()
def pairs(run, checkpoint):
    """Latents f64 `[16,N]` of the same clips, by the checkpoint's VAE and by the run's, without their means."""
    old = AutoencoderKLWan.from_pretrained(checkpoint / "vae").float()
    new, clips = vae.loaded(run / "vae"), Clips(run)
    found = [], []
    for index in range(HELD_OUT, HELD_OUT + MEASURED):
        clip = clips[index][0][None]
        found[0].append(normalised(old, old.encode(vae.as_video(clip)).latent_dist.mode()))
        found[1].append(normalised(new, vae.encode(new, clip)))
    latents = (torch.cat(columns, 1).double() for columns in found)
    return tuple(values - values.mean(1, keepdim=True) for values in latents)


def least_squares(target, source):
    """The matrix that maps `source` to `target` with the least squared error."""
    ridge = RIDGE * source.var(1).mean() * source.shape[1] * torch.eye(len(source), dtype=source.dtype)
    return target @ source.T @ torch.linalg.inv(source @ source.T + ridge)


def explained(matrix, target, source):
    """The share of the variance of `target` that the map tells."""
    return (1 - (target - matrix @ source).square().sum() / target.square().sum()).item()


def remapped(weights, to_old, to_new):
    """The weights of a denoiser that maps its latents by `to_old`, and its velocities by `to_new`, both `[16,16]`."""
    weights = dict(weights)
    weights["patch_embedding.weight"] = torch.einsum("coxyz,oi->cixyz", weights["patch_embedding.weight"].double(), to_old).float()
    # Rows of the head are patches of latents, with the channels innermost.
    rows = weights["proj_out.weight"].double().unflatten(0, (-1, len(to_new)))
    weights["proj_out.weight"] = torch.einsum("no,poc->pnc", to_new, rows).flatten(0, 1).float()
    bias = weights["proj_out.bias"].double().unflatten(0, (-1, len(to_new)))
    weights["proj_out.bias"] = torch.einsum("no,po->pn", to_new, bias).flatten().float()
    return weights


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args()
    old, new = pairs(args.run, args.checkpoint)
    to_old, to_new = least_squares(old, new), least_squares(new, old)
    print(f"explained: old by new {explained(to_old, old, new):.3f}, new by old {explained(to_new, new, old):.3f}", flush=True)
    experts = [WanTransformer3DModel.from_pretrained(args.checkpoint / name).float() for name in ("transformer", "transformer_2")]
    mean = {name: (value + experts[1].state_dict()[name]) / 2 for name, value in experts[0].state_dict().items()}
    model = architecture.denoiser()
    model.load_state_dict(remapped(mean, to_old, to_new))
    model.save_pretrained(args.run / "start")


if __name__ == "__main__":
    main()
