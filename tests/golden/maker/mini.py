"""The golden case of the shipped model: its own trained weights, settings and tokenizer, at a small size."""

from pathlib import Path

import torch
from diffusers import WanPipeline

from . import cleaning, reference

NAME = "mini"
CHECKPOINT = "models/mini/checkpoint"
SEED = 7
# A size and a length that it was not trained on keep the file small; a Chinese and an English text keep both languages in.
REQUEST = reference.Request(
    prompt="一只蓝色的小鸟在城市里上下跳动，日落时分，镜头向左平移",
    negative="blurry, low quality",
    width=64,
    height=48,
    frames=5,
    steps=4,
    guidance=(4.0, 3.0),
    shift=5.0,
    sampler="unipc",
    schedule="diffusers",
)


def run() -> reference.Run:
    """diffusers on the folder as a user would load it."""
    folder = Path(__file__).resolve().parents[3] / CHECKPOINT
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    made = reference.run(pipeline, REQUEST, reference.noise(pipeline, REQUEST, SEED))
    assert len(set(made.experts)) == 2, f"experts used: {made.experts}"
    for name, text in (("prompt_ids", REQUEST.prompt), ("negative_ids", REQUEST.negative)):
        ids = pipeline.tokenizer(cleaning.prompt_clean(text)).input_ids
        made.tensors[name] = torch.tensor(ids, dtype=torch.int32)
    return made


def description(made: reference.Run) -> dict:
    about = "mini as it ships: trained weights in f16, its own tokenizer"
    settings = {"seed": SEED, "experts": 2, "checkpoint": CHECKPOINT, "experts_by_step": made.experts}
    return {"name": NAME, "about": about} | reference.settings(REQUEST) | settings | {"versions": reference.versions()}
