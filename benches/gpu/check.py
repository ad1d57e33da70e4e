#!/usr/bin/env python3
"""Runs exported CUDA graphs on an NVIDIA GPU: placement of operators, error compared with PyTorch bf16, speed.

    check.py --rushes PATH [--layers 4,40] [--out TABLE.md] [--json FILE] [--keep FOLDER]
    check.py --rushes PATH --dry-run        the same steps on the CPU, tiny and in f32, to test this script

Needs torch, diffusers, transformers and onnxruntime-gpu 1.31.1 (CUDA 13, cuDNN 9.15 or newer), and `rushes` built on
this machine. Weights are random, at the width of an expert of Wan2.2-T2V-A14B. PyTorch writes them as a checkpoint,
`rushes export --target cuda` exports the graphs, and both compute on the same inputs. A number of layers that does not
fit in memory is skipped and reported.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

# Official builds send usage data unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import checkpoint  # noqa: E402
import fp8  # noqa: E402
import graphs  # noqa: E402
import torch  # noqa: E402

# Latents [C,T,h,w] of the timed clips: 832x480 of 81 frames, and 416x240 of 17.
CLIPS = {"832x480, 81 frames": (16, 21, 60, 104), "416x240, 17 frames": (16, 5, 30, 52)}
DRY_CLIPS = {"tiny": (16, 2, 4, 6)}


def main() -> None:
    arguments = parse()
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("this machine has no NVIDIA GPU; --dry-run tests the script on the CPU")
    sizes = checkpoint.TINY if arguments.dry_run else checkpoint.A14B
    clips = DRY_CLIPS if arguments.dry_run else CLIPS
    place = graphs.Place.cpu() if arguments.dry_run else graphs.Place.gpu()
    report = {"machine": graphs.machine(place), "steps": [], "others": [], "fp8": []}
    for layers in arguments.layers:
        if why := does_not_fit(sizes, layers, place):
            report["steps"].append({"layers": layers, "left out": why})
            continue
        print(f"{layers} layers ...", file=sys.stderr, flush=True)
        with folder(arguments.keep, layers) as where:
            report["steps"] += steps(Path(where), arguments.rushes, sizes, layers, clips, place)
            if layers == arguments.layers[0]:
                report["others"] = others(Path(where), sizes, place)
    report["fp8"] = fp8.routes(place, sizes)
    text = markdown(report)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rushes", type=Path, required=True, help="path of the program `rushes`")
    parser.add_argument("--layers", type=lambda text: [int(word) for word in text.split(",")], default=None)
    parser.add_argument("--out", type=Path, help="write the table to this file")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--keep", type=Path, help="keep checkpoints and bundles in this folder")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    arguments = parser.parse_args()
    arguments.layers = arguments.layers or ([2] if arguments.dry_run else [4, 40])
    return arguments


def folder(keep: Path | None, layers: int):
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="rushes-gpu-")
    path = keep / f"{layers}-layers"
    path.mkdir(parents=True, exist_ok=True)
    return contextlib.nullcontext(path)


def does_not_fit(sizes, layers: int, place) -> str | None:
    """ONNX Runtime holds the weights twice while it opens the graph; everything else takes 12 GB."""
    needed = 2 * checkpoint.weight_bytes(sizes, layers) + (0 if place.is_cpu else 12e9)
    free = place.free_memory()
    return None if free is None or needed <= free else f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"


def steps(where: Path, rushes: Path, sizes, layers: int, clips: dict, place) -> list[dict]:
    """One step at every clip's size. PyTorch runs first, so that only one side holds weights on the device."""
    model = checkpoint.write(where / "checkpoint", sizes, layers, place)
    inputs = {name: graphs.step_inputs(sizes, latent, place) for name, latent in clips.items()}
    torch_results = {name: graphs.torch_step(model, given, place) for name, given in inputs.items()}
    checkpoint.drop(model)
    graphs.export(rushes, where, place)
    session, placement = graphs.open_session(graphs.find(where, "experts", "step", place), place)
    results = []
    for name, given in inputs.items():
        output, seconds = graphs.run(session, given, "velocity", place)
        reference = torch_results[name]
        results.append({
            "layers": layers,
            "clip": name,
            "placement": placement,
            "seconds": seconds,
            "torch seconds": reference["seconds"],
            "relative error": graphs.relative_error(output, reference["output"]),
            "torch's own error": reference["own error"],
        })
    return results


def others(where: Path, sizes, place) -> list[dict]:
    """The decoder's two graphs compared with PyTorch, and the text encoder's placement."""
    return [graphs.decoder(where, place), graphs.text_encoder(where, place)]


def markdown(report: dict) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = [machine, ""]
    lines.append("| step | Rushes, ms | PyTorch, ms | PyTorch / Rushes | relative error | PyTorch bf16 to f32 | placement |")
    lines.append("|---|---|---|---|---|---|---|")
    for step in report["steps"]:
        name = f"{step['layers']} layers"
        if "left out" in step:
            lines.append(f"| {name} | skipped: {step['left out']} | | | | | |")
            continue
        rushes, torch_seconds = step["seconds"], step["torch seconds"]
        own = step["torch's own error"]
        cells = [f"{1e3 * rushes:.1f}", f"{1e3 * torch_seconds:.1f}", f"{torch_seconds / rushes:.2f}"]
        cells += [f"{100 * step['relative error']:.3f} %"]
        cells += ["" if own is None else f"{100 * own:.3f} %", graphs.describe(step["placement"])]
        lines.append(f"| {name}, {step['clip']} | {' | '.join(cells)} |")
    lines += ["", "| graph | Rushes, ms | PyTorch, ms | relative error | placement |", "|---|---|---|---|---|"]
    for other in report["others"]:
        torch_seconds, error = other.get("torch seconds"), other.get("relative error")
        cells = [f"{1e3 * other['seconds']:.1f}", "" if torch_seconds is None else f"{1e3 * torch_seconds:.1f}"]
        cells += ["" if error is None else f"{100 * error:.3f} %", graphs.describe(other["placement"])]
        lines.append(f"| {other['graph']} | {' | '.join(cells)} |")
    lines += ["", "| FP8 route, one product | ms | times bf16 | relative error |", "|---|---|---|---|"]
    for route in report["fp8"]:
        if "fails" in route:
            lines.append(f"| {route['route']} | fails: {route['fails']} | | |")
        else:
            cells = [f"{1e3 * route['seconds']:.2f}", f"{route['times bf16']:.2f}", f"{100 * route['relative error']:.2f} %"]
            lines.append(f"| {route['route']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
