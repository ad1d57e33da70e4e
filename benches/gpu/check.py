#!/usr/bin/env python3
"""Runs our graphs for CUDA on an NVIDIA GPU: where each operator runs, how far from torch bf16, how fast.

    check.py --rushes PATH [--layers 4,40] [--out TABLE.md] [--json FILE] [--keep FOLDER]
    check.py --rushes PATH --dry-run        the same steps on the CPU, tiny and in f32, to check the script itself

Needs torch, diffusers, transformers and onnxruntime-gpu 1.31.1 (CUDA 13, cuDNN 9.15 or newer), and `rushes` built on this
machine. Weights are random, at the width of an expert of Wan2.2-T2V-A14B. Torch writes them as a checkpoint, `rushes export
--target cuda` makes the graphs, and both compute on the same inputs. A number of layers that does not fit is left out and
said so.
"""

import argparse
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
        raise SystemExit("there is no NVIDIA GPU here; --dry-run checks the script on the CPU")
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
    parser.add_argument("--rushes", type=Path, required=True, help="the program")
    parser.add_argument("--layers", type=lambda text: [int(word) for word in text.split(",")], default=None)
    parser.add_argument("--out", type=Path, help="writes the table there")
    parser.add_argument("--json", type=Path, help="writes every number there")
    parser.add_argument("--keep", type=Path, help="keeps checkpoints and bundles in this folder")
    parser.add_argument("--dry-run", action="store_true", help="tiny and on the CPU")
    arguments = parser.parse_args()
    arguments.layers = arguments.layers or ([2] if arguments.dry_run else [4, 40])
    return arguments


def folder(keep: Path | None, layers: int):
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="rushes-gpu-")
    kept = keep / f"{layers}-layers"
    kept.mkdir(parents=True, exist_ok=True)
    return graphs.Kept(kept)


def does_not_fit(sizes, layers: int, place) -> str | None:
    """Weights twice, as ONNX Runtime holds them while it opens the graph, and 12 GB for everything else."""
    needed = 2 * checkpoint.weight_bytes(sizes, layers) + (0 if place.is_cpu else 12e9)
    free = place.free_memory()
    return None if free is None or needed <= free else f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"


def steps(where: Path, rushes: Path, sizes, layers: int, clips: dict, place) -> list[dict]:
    """One step at every clip's size: torch first, so that only one of both holds weights on the device."""
    model = checkpoint.write(where / "checkpoint", sizes, layers, place)
    inputs = {name: graphs.step_inputs(sizes, latent, place) for name, latent in clips.items()}
    torch_results = {name: graphs.torch_step(model, given, place) for name, given in inputs.items()}
    checkpoint.drop(model)
    graphs.export(rushes, where, place)
    session, placement = graphs.open_session(graphs.find(where, "experts", "step", place), place)
    results = []
    for name, given in inputs.items():
        ours, seconds = graphs.run(session, given, "velocity", place)
        theirs = torch_results[name]
        results.append({
            "layers": layers,
            "clip": name,
            "placement": placement,
            "seconds": seconds,
            "torch seconds": theirs["seconds"],
            "relative error": graphs.relative_error(ours, theirs["output"]),
            "torch's own error": theirs["own error"],
        })
    return results


def others(where: Path, sizes, place) -> list[dict]:
    """The decoder's two graphs against torch, and the text encoder's placement."""
    return [graphs.decoder(where, place), graphs.text_encoder(where, place)]


def markdown(report: dict) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = [machine, "", "| step | ours, ms | torch, ms | torch / ours | relative error | torch bf16 to f32 | placement |"]
    lines.append("|---|---|---|---|---|---|---|")
    for step in report["steps"]:
        name = f"{step['layers']} layers"
        if "left out" in step:
            lines.append(f"| {name} | left out: {step['left out']} | | | | | |")
            continue
        ours, theirs = step["seconds"], step["torch seconds"]
        own = step["torch's own error"]
        cells = [f"{1e3 * ours:.1f}", f"{1e3 * theirs:.1f}", f"{theirs / ours:.2f}", f"{100 * step['relative error']:.3f} %"]
        cells += ["" if own is None else f"{100 * own:.3f} %", graphs.describe(step["placement"])]
        lines.append(f"| {name}, {step['clip']} | {' | '.join(cells)} |")
    lines += ["", "| graph | ours, ms | torch, ms | relative error | placement |", "|---|---|---|---|---|"]
    for other in report["others"]:
        theirs, error = other.get("torch seconds"), other.get("relative error")
        cells = [f"{1e3 * other['seconds']:.1f}", "" if theirs is None else f"{1e3 * theirs:.1f}"]
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
