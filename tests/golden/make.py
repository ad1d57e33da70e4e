#!/usr/bin/env python3
"""Makes the golden cases, or checks a trace of ours against diffusers.

    make.py [CASE ...]                      remakes all cases and vectors, or only the named cases
    make.py check CHECKPOINT --trace FILE   compares a trace with diffusers on the same checkpoint

README.md beside this file lists what is written and how to read it.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from maker import (
    check,
    checkpoint,
    cleaning,
    lists,
    lora,
    mini,
    reference,
    schedules,
    tiny_decoder,
    tokenizer,
    vectors,
)
from maker.cases import CASES, Case

HERE = Path(__file__).resolve().parent
SIZE_LIMIT = 8_500_000
NAMES = [case.name for case in CASES] + [mini.NAME, lora.FOLDER] + lists.NAMES


def main() -> int:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    if sys.argv[1:2] == ["check"]:
        return 0 if check.main(check_arguments(sys.argv[2:])) else 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(NAMES))
    chosen = parser.parse_args().cases
    if unknown := set(chosen) - set(NAMES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    reference.require_ftfy()
    if not chosen:
        write_json(HERE / "schedules.json", schedules.vectors())
        write_json(HERE / "lists.json", schedules.lists())
        write_json(HERE / "randn.json", vectors.randn())
        write_json(HERE / "clean.json", cleaning.pairs())
        tiny_decoder.make(HERE / "tiny-decoder")
    raw_tokenizer = tokenizer.build([cleaned(text) for case in CASES for text in (case.prompt, case.negative)])
    for case in CASES:
        if not chosen or case.name in chosen:
            make(case, raw_tokenizer, HERE / case.name)
    if not chosen or mini.NAME in chosen:
        run = mini.run()
        (HERE / mini.NAME).mkdir(exist_ok=True)
        save_file(run.tensors, HERE / mini.NAME / "reference.safetensors")
        write_json(HERE / mini.NAME / "case.json", mini.description(run), indent=2)
        print(f"{mini.NAME}: {run.experts}, {list(run.tensors['frames'].shape)}")
    for name in lists.NAMES:
        if not chosen or name in chosen:
            run = lists.run(name, HERE)
            (HERE / name).mkdir(exist_ok=True)
            save_file(run.tensors, HERE / name / "reference.safetensors")
            write_json(HERE / name / "case.json", lists.description(name, run), indent=2)
            print(f"{name}: {run.experts}, {list(run.tensors['frames'].shape)}")
    if not chosen or lora.FOLDER in chosen:
        lora.make(HERE, request_of)
    check_token_ids([case for case in CASES if (HERE / case.name).is_dir()])
    total = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    print(f"{total / 1e6:.2f} MB in {HERE.name}/")
    assert total < SIZE_LIMIT
    return 0


def check_arguments(arguments: list[str]) -> argparse.Namespace:
    about = "Flags mean what they mean in `rushes generate`."
    parser = argparse.ArgumentParser(prog="make.py check", description=about)
    parser.add_argument("checkpoint", help="folder in the diffusers layout")
    parser.add_argument("--trace", required=True, help="file written by `rushes generate --trace`")
    parser.add_argument("--case", help="case.json with settings that no flag gives")
    parser.add_argument("--prompt")
    parser.add_argument("--negative")
    parser.add_argument("--size", type=lambda text: tuple(int(n) for n in text.split("x")), metavar="WxH")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=guidance, metavar="HIGH[,LOW]")
    parser.add_argument("--shift", type=float)
    parser.add_argument("--sampler", choices=schedules.SAMPLERS + ["renoise"])
    parser.add_argument("--timesteps", type=lambda text: tuple(float(t) for t in text.split(",")), metavar="LIST")
    parser.add_argument("--start", choices=["noise", "noise*sigma0"])
    parser.add_argument("--schedule", choices=schedules.SCHEDULES)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--noise", help="safetensors file with `noise` [C,T,h,w]")
    return parser.parse_args(arguments)


def guidance(text: str) -> tuple[float, float]:
    high, _, low = text.partition(",")
    return float(high), float(low or high)


def make(case: Case, raw_tokenizer, folder: Path) -> None:
    """Draws the checkpoint, saves it, and runs diffusers on what was saved."""
    request = request_of(case)
    saved = folder / "checkpoint"
    generator = torch.Generator().manual_seed(case.seed % 1000)
    pipeline = checkpoint.build(case, raw_tokenizer, saved)
    # Only a run shows which latents reach the decoder, so its last layer is fitted after a first one.
    latents = reference.run(pipeline, request, reference.noise(pipeline, request, case.seed)).tensors
    checkpoint.fit_output(pipeline, latents[f"latents.{case.steps - 1:03}"][None], generator)
    checkpoint.save(case, pipeline, raw_tokenizer, saved)

    fitted = checkpoint.load(saved)
    run = reference.run(fitted, request, reference.noise(fitted, request, case.seed))
    if case.official_names:
        checkpoint.rename_to_official(case, saved)
        stored = checkpoint.load(saved)
    else:
        stored = WanPipeline.from_pretrained(saved, dtype=torch.float32)
    again = reference.run(stored, request, run.tensors["noise"][None])
    assert torch.equal(again.tensors["frames"], run.tensors["frames"]), f"{case.name}: the files hold another model"
    check_run(case, run)
    check_rounding(case, run, saved)
    words = {"prompt": case.prompt, "negative": case.negative}
    for name, text in words.items():
        ids = tokenizer.ids(saved / "tokenizer", cleaned(text))
        for loaded in (fitted.tokenizer, AutoTokenizer.from_pretrained(saved / "tokenizer")):
            assert loaded(cleaned(text)).input_ids == ids, f"{case.name}: transformers changed the tokenizer"
        run.tensors[f"{name}_ids"] = torch.tensor(ids, dtype=torch.int32)
    save_file(run.tensors, folder / "reference.safetensors")
    write_json(folder / "case.json", description(case, run), indent=2)
    frames = run.tensors["frames"]
    inside = ((frames > 0) & (frames < 1)).float().mean().item()
    steps = " + ".join(str(run.experts.count(expert)) for expert in checkpoint.expert_folders(case))
    print(f"{case.name}: {steps} steps, {list(frames.shape)}, deviation {frames.std():.3f}, unclamped {inside:.1%}")


def request_of(case: Case) -> reference.Request:
    fields = reference.Request.__dataclass_fields__
    return reference.Request(**{name: getattr(case, name) for name in fields if hasattr(case, name)})


def description(case: Case, run: reference.Run) -> dict:
    made = asdict(case) | {
        "cleaned_prompt": cleaned(case.prompt),
        "cleaned_negative": cleaned(case.negative),
        "latent_frames": case.latent_frames,
        "boundary": case.boundary,
        "experts_by_step": run.experts,
        "versions": reference.versions(),
    }
    return made


def check_run(case: Case, run: reference.Run) -> None:
    """The properties the cases exist for."""
    assert set(run.experts) == set(checkpoint.expert_folders(case)), f"{case.name}: experts used: {run.experts}"
    assert run.experts == sorted(run.experts), f"{case.name}: the boundary is crossed more than once"
    frames = run.tensors["frames"]
    assert frames.shape == (case.frames, case.height, case.width, 3)
    assert frames.std() > 0.1, f"{case.name}: flat frames"
    assert ((frames > 0) & (frames < 1)).float().mean() > 0.95, f"{case.name}: clamped frames"
    for name, tensor in run.tensors.items():
        assert torch.isfinite(tensor).all(), f"{case.name}: {name}"
    for name in (n for n in run.tensors if n.startswith("latents.")):
        assert 0.3 < run.tensors[name].std() < 5, f"{case.name}: {name} has deviation {run.tensors[name].std()}"
    if case.smooth:
        assert chroma_snr(frames) > 40, f"{case.name}: {chroma_snr(frames):.1f} dB survive 4:2:0"
        motion = (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3))
        assert motion.min() > 1e-3, f"{case.name}: still frames, {motion}"


def check_rounding(case: Case, run: reference.Run, saved: Path) -> None:
    """A bound means nothing where f32 itself is that far off: an f64 run stays within a fifth of every bound."""
    precise = checkpoint.load(saved)
    precise.to(torch.float64)
    again = reference.run(precise, request_of(case), run.tensors["noise"][None])
    for name in filter(check.is_compared, run.tensors):
        _, function, bound = check.measure(name)
        off = function(again.tensors[name], run.tensors[name])
        assert off < bound / 5, f"{case.name}: {name} in f32 is {off:.1e} from f64, the bound is {bound:.0e}"


def chroma_snr(frames: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB after halving the resolution of the colour (BT.709), as video coding does."""
    red, green, blue = frames.unbind(-1)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    colour = torch.stack([blue - luma, red - luma], dim=1)
    halved = torch.nn.functional.avg_pool2d(colour, 2)
    blue_difference, red_difference = torch.nn.functional.interpolate(halved, scale_factor=2, mode="bilinear").unbind(1)
    red2, blue2 = luma + red_difference, luma + blue_difference
    green2 = (luma - 0.2126 * red2 - 0.0722 * blue2) / 0.7152
    error = (torch.stack([red2, green2, blue2], dim=-1) - frames).square().mean()
    return (-10 * error.log10()).item()


def check_token_ids(cases: list[Case]) -> None:
    """Every prompt is known to the tokenizer, and no two prompts look the same to the model."""
    seen: dict[tuple[int, ...], str] = {}
    for case in cases:
        tensors = load_file(HERE / case.name / "reference.safetensors")
        ids = tuple(tensors["prompt_ids"].tolist())
        for known in (ids, tuple(tensors["negative_ids"].tolist())):
            assert tokenizer.UNKNOWN_ID not in known, f"{case.name}: unknown token in {known}"
            assert known[-1] == tokenizer.SPECIAL.index("</s>")
        assert len(set(ids)) >= 8, f"{case.name}: too few tokens"
        assert ids not in seen, f"{case.name} and {seen[ids]} have the same prompt"
        seen[ids] = case.name


def cleaned(text: str) -> str:
    return cleaning.prompt_clean(text)


def write_json(path: Path, value, indent: int | None = None) -> None:
    """Compact lists keep one entry per line, so that a change shows as one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if indent is None:
        text = "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]\n"
    else:
        text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
