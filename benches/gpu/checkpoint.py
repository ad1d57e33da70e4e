"""Writes a checkpoint in the diffusers layout: random denoiser and VAE of a given size, the other parts of mini."""

import gc
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

MINI = Path(__file__).resolve().parents[2] / "models/mini/checkpoint"


@dataclass(frozen=True)
class Sizes:
    heads: int
    head_dim: int
    ffn: int
    # The base width of the VAE.
    vae: int


A14B = Sizes(heads=40, head_dim=128, ffn=13_824, vae=96)
TINY = Sizes(heads=2, head_dim=16, ffn=64, vae=16)


def text_width() -> int:
    return json.loads((MINI / "text_encoder/config.json").read_text())["d_model"]


def weight_bytes(sizes: Sizes, layers: int) -> int:
    d = sizes.heads * sizes.head_dim
    return 2 * layers * (8 * d * d + 2 * d * sizes.ffn)


def write(folder: Path, sizes: Sizes, layers: int, place) -> WanTransformer3DModel:
    """Writes the checkpoint in the number format of `place`. Returns its denoiser, on the device, in eval mode."""
    torch.manual_seed(layers)
    for name in ["scheduler", "text_encoder", "tokenizer"]:
        shutil.copytree(MINI / name, folder / name, dirs_exist_ok=True)
    index = json.loads((MINI / "model_index.json").read_text())
    index |= {"transformer_2": [None, None], "boundary_ratio": None}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))

    with torch.device(place.device):
        model = WanTransformer3DModel(
            num_attention_heads=sizes.heads,
            attention_head_dim=sizes.head_dim,
            text_dim=text_width(),
            ffn_dim=sizes.ffn,
            num_layers=layers,
        ).to(place.dtype)
    randomise(model)
    model.save_pretrained(folder / "transformer")
    keep_in_f32(model)

    vae = AutoencoderKLWan(base_dim=sizes.vae)
    randomise(vae)
    vae.to(place.dtype).save_pretrained(folder / "vae")
    return model.eval()


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    """Gains near 1, small biases and tables, and weights that preserve the scale of activations."""
    for name, parameter in module.named_parameters():
        if name.endswith("gamma") or (parameter.ndim == 1 and name.endswith("weight")):
            parameter.normal_(1.0, 0.05)
        elif parameter.ndim <= 1 or "scale_shift_table" in name:
            parameter.normal_(0.0, 0.05)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)


def keep_in_f32(model: WanTransformer3DModel) -> None:
    """Converts the model as loading in bf16 does: diffusers keeps some modules of the transformer in f32."""
    kept = tuple(WanTransformer3DModel._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        if any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.float()


def drop(model: torch.nn.Module) -> None:
    model.to("meta")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
