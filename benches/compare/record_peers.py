#!/usr/bin/env python3
"""Adds what PyTorch and OpenVINO take for the steps of a record to its file.

    record_peers.py RECORD.json [--rounds N] [--longest SECONDS] [--only torch,openvino]

The record is one that `rushes bench record` wrote on this machine. Steps are timed as ours are: graphs of one and of two
layers take turns, the difference is a layer, and a whole step is extrapolated by layers. torch computes in bf16;
OpenVINO converts the same module and is told to compute in bf16. What a run would take longer for than `--longest` is
left out.
"""

import argparse
import json
import sys
import time
from pathlib import Path

# Python puts this folder first in the search path, where `diffusers.py` would hide the package of its name.
HERE = Path(__file__).resolve().parent
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import torch  # noqa: E402
from diffusers import WanTransformer3DModel  # noqa: E402

# Heads, channels of the latent, width of the feed-forward layer, layers.
SHAPES = {"1.3b": (12, 16, 8960, 30), "5b": (24, 48, 14336, 30), "a14b": (40, 16, 13824, 40)}
# Rows and columns of patches of 832x480, and latent frames.
GRIDS = {"1.3b": (30, 52), "5b": (15, 26), "a14b": (30, 52)}
FRAMES = {"480p17": 5, "480p81": 21}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=float, default=60.0)
    parser.add_argument("--only", default="torch,openvino")
    arguments = parser.parse_args()
    record = json.loads(arguments.record.read_text())
    torch.set_num_threads(record["machine"]["cpu"]["threads"])
    peers = [peer for peer in record.get("peers", []) if peer["name"].split()[0] not in arguments.only.split(",")]
    steps = sorted({(step["shape"], step["clip"], step["tokens"]) for step in record["steps"]}, key=lambda step: step[2])
    for name, prepare in [("torch", torch_step), ("openvino", openvino_step)]:
        if name not in arguments.only.split(","):
            continue
        for shape, clip, tokens in steps:
            found = measured(arguments, prepare, shape, clip)
            if found is None:
                record["not_measured"].append(f"step of {shape} {clip} in {name}: longer than --longest {arguments.longest}")
                continue
            peers.append({"name": f"{name} bf16", "shape": shape, "clip": clip, "tokens": tokens, **found})
            print(json.dumps(peers[-1]), flush=True)
    record["peers"] = peers
    part = arguments.record.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    part.replace(arguments.record)


def measured(arguments, prepare, shape: str, clip: str) -> dict | None:
    runs = []
    times: list[list[float]] = [[], []]
    for layers in (1, 2):
        run = prepare(shape, clip, layers)
        if seconds(run) > arguments.longest:
            return None
        runs.append(run)
    for _ in range(arguments.rounds):
        for run, found in zip(runs, times):
            found.append(seconds(run))
    one, two = (min(found) for found in times)
    layers = SHAPES[shape][3]
    return {
        "seconds_of_one": times[0],
        "seconds_of_two": times[1],
        "layer_s": two - one,
        "whole_s": one + (layers - 1) * (two - one),
    }


def module(shape: str, layers: int) -> WanTransformer3DModel:
    heads, channels, hidden, _ = SHAPES[shape]
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=128,
        in_channels=channels,
        out_channels=channels,
        text_dim=4096,
        ffn_dim=hidden,
        num_layers=layers,
    )
    return model.eval()


def inputs(shape: str, clip: str, dtype: torch.dtype) -> tuple:
    rows, columns = GRIDS[shape]
    latent = torch.randn(1, SHAPES[shape][1], FRAMES[clip], 2 * rows, 2 * columns, dtype=dtype)
    return latent, torch.tensor([500]), torch.randn(1, 512, 4096, dtype=dtype)


def torch_step(shape: str, clip: str, layers: int):
    model = module(shape, layers).to(torch.bfloat16)
    values = inputs(shape, clip, torch.bfloat16)

    def run() -> None:
        with torch.inference_mode():
            model(*values, return_dict=False)

    return run


def openvino_step(shape: str, clip: str, layers: int):
    import openvino

    values = inputs(shape, clip, torch.float32)
    with torch.inference_mode():
        graph = openvino.convert_model(module(shape, layers), example_input=values)
    hints = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(graph, "CPU", hints)
    arrays = [value.numpy() for value in values]
    return lambda: compiled(arrays)


def seconds(run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
