"""Official (Wan2.2 repository) tensor names for diffusers state dicts, and back.

Forward names follow the published key tables; the way back is diffusers' own converter, so a wrong table here
cannot go unnoticed: `to_official` checks the round trip.
"""

import re

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

Tensors = dict[str, torch.Tensor]

DIT_NAMES = [
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
]

RESIDUAL_PARTS = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
VAE_NAMES = [
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
    (r"\.conv_shortcut\.", ".shortcut."),
]


def to_official(component: str, tensors: Tensors) -> Tensors:
    """The same tensors under their official names; `component` is `transformer`, `transformer_2` or `vae`."""
    rename = vae_name if component == "vae" else dit_name
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    back = from_official(component, renamed)
    assert back.keys() == tensors.keys(), sorted(back.keys() ^ tensors.keys())
    assert all(back[name] is tensors[name] for name in tensors)
    return renamed


def from_official(component: str, tensors: Tensors) -> Tensors:
    """diffusers' conversion of official names."""
    convert = convert_wan_vae_to_diffusers if component == "vae" else convert_wan_transformer_to_diffusers
    return convert(dict(tensors))


def is_official(tensors) -> bool:
    return "head.modulation" in tensors or "decoder.head.0.gamma" in tensors


def dit_name(name: str) -> str:
    return substituted(name, DIT_NAMES)


def vae_name(name: str) -> str:
    name = substituted(name, VAE_NAMES)
    name = re.sub(r"\.mid_block\.resnets\.([01])\.", lambda m: f".middle.{2 * int(m[1])}.", name)
    name = re.sub(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", flat_upsample, name)
    block = r"^((?:en|de)coder\.(?:middle|downsamples|upsamples)\.\d+)\.(norm1|conv1|norm2|conv2)\."
    return re.sub(block, lambda m: f"{m[1]}.{RESIDUAL_PARTS[m[2]]}.", name)


def flat_upsample(match: re.Match) -> str:
    """Official up blocks are one flat list: three residual blocks and an up-sampler per level."""
    level, kind, index = int(match[1]), match[2], int(match[3])
    return f"decoder.upsamples.{4 * level + (3 if kind == 'upsamplers' else index)}."


def substituted(name: str, patterns: list[tuple[str, str]]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
