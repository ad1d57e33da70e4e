"""The golden cases of lists of timesteps, on the checkpoints of other cases."""

from dataclasses import replace
from pathlib import Path

import torch

from . import checkpoint, cleaning, reference
from .cases import CASES, Case

SETTINGS = {
    # The timesteps of FastWan with guidance on both experts.
    "listed-euler": ("two-experts", {"sampler": "euler", "timesteps": (1000.0, 920.5, 757.0, 522.0), "guidance": (4.0, 3.0)}),
    # rCM: the noise times its first sigma, and fresh noise in every step but the last.
    "listed-renoise": (
        "four-steps",
        {
            "sampler": "renoise",
            "timesteps": (987.654297, 933.779968, 852.900024, 608.979004),
            "start": "noise*sigma0",
            "guidance": (1.0, 1.0),
        },
    ),
}
NAMES = list(SETTINGS)


def base(name: str) -> Case:
    return next(case for case in CASES if case.name == SETTINGS[name][0])


def request(name: str) -> reference.Request:
    case, (_, settings) = base(name), SETTINGS[name]
    fields = reference.Request.__dataclass_fields__
    plain = reference.Request(**{key: getattr(case, key) for key in fields if hasattr(case, key)})
    return replace(plain, steps=len(settings["timesteps"]), **settings)


def run(name: str, golden: Path) -> reference.Run:
    case, asked = base(name), request(name)
    pipeline = checkpoint.load(golden / case.name / "checkpoint")
    made = reference.run(pipeline, asked, reference.noise(pipeline, asked, case.seed), case.seed)
    assert len(set(made.experts)) == 2, f"{name}: experts used: {made.experts}"
    for key, text in (("prompt_ids", asked.prompt), ("negative_ids", asked.negative)):
        ids = pipeline.tokenizer(cleaning.prompt_clean(text)).input_ids
        made.tensors[key] = torch.tensor(ids, dtype=torch.int32)
    return made


def description(name: str, made: reference.Run) -> dict:
    case = base(name)
    about = f"a list of timesteps on the checkpoint of {case.name}"
    settings = {
        "seed": case.seed,
        "experts": case.experts,
        "checkpoint": f"tests/golden/{case.name}/checkpoint",
        "experts_by_step": made.experts,
    }
    return {"name": name, "about": about} | reference.settings(request(name)) | settings | {"versions": reference.versions()}
