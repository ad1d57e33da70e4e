"""Compares a trace of `rushes generate --trace FILE` with what diffusers computes from the same folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import checkpoint, reference

TEXT_BOUND = 2e-5
LATENT_BOUND = 2e-4
FRAME_BOUND = 2e-3


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference."""
    return (a.double() - b.double()).abs().max().item()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def measure(name: str):
    """Name of the measure, its function and its bound for a tensor of the trace."""
    if name.endswith("prompt_embeds"):
        return "max |a-b|", largest, TEXT_BOUND
    if name.startswith("latents."):
        return "|a-b| / |b|", relative, LATENT_BOUND
    return "max |a-b|", largest, FRAME_BOUND


def is_compared(name: str) -> bool:
    return name.startswith("latents.") or name in ("prompt_embeds", "negative_prompt_embeds", "frames")


def compare(trace: dict[str, torch.Tensor], made: dict[str, torch.Tensor], guided: bool) -> bool:
    """Prints one line per tensor; true when every tensor is there, has its shape and keeps its bound."""
    names = filter(is_compared, made)
    print(f"{'tensor':<24} {'measure':<12} {'difference':>11} {'bound':>8}")
    fine = True
    for name in sorted(names, key=lambda n: ("prompt" not in n, n == "frames", n)):
        if name not in trace:
            optional = name == "negative_prompt_embeds" and not guided
            print(f"{name:<24} {'not in the trace':<32} {'unused' if optional else 'MISSING'}")
            fine &= optional
            continue
        if trace[name].shape != made[name].shape:
            print(f"{name:<24} shape {list(trace[name].shape)}, diffusers {list(made[name].shape)} WRONG")
            fine = False
            continue
        title, function, bound = measure(name)
        difference = function(trace[name], made[name])
        within = difference <= bound  # false for NaN
        fine &= within
        print(f"{name:<24} {title:<12} {difference:>11.3e} {bound:>8.0e} {'' if within else 'OVER'}")
    return fine


def request_of(arguments) -> reference.Request:
    """Settings from flags; what no flag gives comes from `--case`."""
    settings = json.loads(Path(arguments.case).read_text()) if arguments.case else {}
    width, height = arguments.size or (settings.get("width"), settings.get("height"))
    given = {
        "prompt": arguments.prompt,
        "negative": arguments.negative,
        "width": width,
        "height": height,
        "frames": arguments.frames,
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "shift": arguments.shift,
        "sampler": arguments.sampler,
        "schedule": arguments.schedule,
    }
    chosen = {name: settings.get(name) if value is None else value for name, value in given.items()}
    optional = {"timesteps": arguments.timesteps, "start": arguments.start}
    optional = {name: settings.get(name) if value is None else value for name, value in optional.items()}
    missing = {"size" if name in ("width", "height") else name for name, value in chosen.items() if value is None}
    if missing:
        raise SystemExit(f"check needs --{', --'.join(sorted(missing))}, or --case with a case.json")
    given = {name: value for name, value in optional.items() if value is not None}
    return reference.Request(**chosen | {"guidance": tuple(chosen["guidance"])} | given)


def starting_noise(arguments, trace, pipeline, request) -> torch.Tensor:
    """`[1,C,T,h,w]` from `--noise`, else `--seed`, else the trace itself, else the case's seed."""
    if arguments.noise:
        return load_file(arguments.noise)["noise"].float()[None]
    if arguments.seed is not None:
        return reference.noise(pipeline, request, arguments.seed)
    if "noise" in trace:
        return trace["noise"].float()[None]
    if arguments.case:
        return reference.noise(pipeline, request, json.loads(Path(arguments.case).read_text())["seed"])
    raise SystemExit("check needs --noise FILE or --seed N")


def main(arguments) -> bool:
    request = request_of(arguments)
    trace = load_file(arguments.trace)
    pipeline = checkpoint.load(Path(arguments.checkpoint))
    seed = arguments.seed
    if seed is None and arguments.case:
        seed = json.loads(Path(arguments.case).read_text())["seed"]
    made = reference.run(pipeline, request, starting_noise(arguments, trace, pipeline, request), seed)
    return compare(trace, made.tensors, guided=max(request.guidance) > 1)
