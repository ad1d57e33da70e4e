#!/usr/bin/env python3
"""Measures how much previews slow down denoising, and the time until the first picture; kinds alternate in one run.

    previews.py --ours target/release/rushes [--shape mini|wan] [--rounds N] [--diffusers CHECKPOINT]

`mini` is the embedded model with its own settings. `wan` is a random model of the 1.3B shape (12 heads x 128,
feed-forward 8960) with four layers instead of 30, the whole Wan2.1 VAE, a tiny decoder of the published widths, and
clips of one frame at 640x352 (880 tokens). A step is a seventh of a real one, so the relative cost of previews is seven
times as high.

`--diffusers` also times diffusers' pipeline on that checkpoint, which shows no picture before the last frame.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
GOLDEN = HERE.parents[1] / "tests/golden"
MINI = HERE.parents[1] / "models/mini/checkpoint"
PROMPT = "a red car moves from left to right on a city street, at dusk"


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = arguments.bundle or str(folder / "bundle")
        if not arguments.bundle:
            checkpoint = MINI if arguments.shape == "mini" else wan(folder)
            run([arguments.ours, "export", checkpoint, "--out", bundle, "--no-verify", "--copy"])
        if not Path(bundle, "preview/map.json").is_file():
            run([arguments.ours, "calibrate", bundle, "--preview", "--clips", "1", *calibration(arguments.shape)])
        kinds = ["off", "rgb", "full"] + (["tiny"] if Path(bundle, "preview/weights").is_dir() else [])
        rows = {kind: [] for kind in kinds}
        for number in range(arguments.rounds + 1):
            for kind in kinds:
                done = generate(arguments, bundle, kind, folder)
                # The first round warms the page cache.
                if number:
                    rows[kind].append(done)
        print(table(rows))
        if arguments.diffusers:
            print(f"diffusers, first picture: {diffusers_seconds(arguments.diffusers):.2f} s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="path of the program `rushes`")
    parser.add_argument("--shape", choices=["mini", "wan"], default="mini")
    parser.add_argument("--bundle", help="a bundle of that shape, instead of exporting one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--diffusers", metavar="CHECKPOINT")
    return parser.parse_args()


def run(command: list) -> str:
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{command}: {ran.stdout}{ran.stderr}")
    return ran.stdout


def calibration(shape: str) -> list:
    return [] if shape == "mini" else ["--size", "128x128"]


def generate(arguments, bundle: str, kind: str, folder: Path) -> dict:
    settings = [] if arguments.shape == "mini" else ["--size", "640x352", "--frames", 1, "--steps", 6, "--guidance", 1]
    command = [arguments.ours, "generate", PROMPT, "--bundle", bundle, "--seed", 3, "--json", "-o", folder / "out.mp4"]
    lines = run([*command, *settings, "--preview", kind, "--preview-out", folder / f"previews-{kind}"])
    return next(line for line in map(json.loads, lines.splitlines()) if line["event"] == "done")


def table(rows: dict) -> str:
    def median(kind, pick):
        values = [pick(done) for done in rows[kind]]
        return statistics.median(values) if all(value is not None for value in values) else None

    off = median("off", lambda done: done["timing"]["step"])
    lines = ["| previews | step, median ms | compared with off | shown | skipped | first picture, s | (text + one step), s | ratio |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for kind in rows:
        step = median(kind, lambda done: done["timing"]["step"])
        first = median(kind, lambda done: done["timing"]["first_preview"])
        least = median(kind, lambda done: done["timing"]["text"]) + step
        shown = [median(kind, lambda done: (done["preview"] or {}).get(count, 0)) for count in ("shown", "skipped")]
        seen = [f"{first:.3f}", f"{least:.3f}", f"{first / least:.2f}"] if first else ["", "", ""]
        pairs = zip(rows[kind], rows["off"])
        ratio = statistics.median(done["timing"]["step"] / base["timing"]["step"] for done, base in pairs)
        cells = [kind, f"{1000 * step:.2f}", f"{ratio:.3f}", *(f"{n:.0f}" for n in shown), *seen]
        lines.append("| " + " | ".join(cells) + " |")
    pick = lambda name: median("off", lambda done: done["timing"][name])
    lines.append("")
    lines.append(
        f"without previews: loading {pick('loading'):.2f} s; then text {pick('text'):.3f} s, first final frame after "
        f"{pick('first_frame'):.2f} s, {pick('first_frame_of_decode'):.3f} s into a decode of {pick('decode'):.3f} s; "
        f"whole {pick('whole'):.2f} s; steps alone vary by {spread(rows['off']):.1%}"
    )
    return "\n".join(lines)


def spread(runs: list) -> float:
    steps = [done["timing"]["step"] for done in runs]
    return (max(steps) - min(steps)) / statistics.median(steps)


def wan(folder: Path) -> Path:
    """A random checkpoint of the 1.3B shape with four layers, with a random tiny decoder of the published widths."""
    sys.path.insert(0, str(GOLDEN))
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from maker import tiny_decoder, tokenizer
    from safetensors.torch import save_file
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    raw = tokenizer.build([PROMPT, ""])
    tokenizer.save(raw, folder / "tokenizer")
    text = UMT5Config(vocab_size=tokenizer.VOCABULARY_SIZE, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    denoiser = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=64, ffn_dim=8960,
        num_layers=4,
    )  # fmt: skip
    pipeline = WanPipeline(
        tokenizer=tokenizer.load(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel(text),
        vae=AutoencoderKLWan(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
        ),
        transformer=denoiser,
        transformer_2=None,
        boundary_ratio=None,
    )
    checkpoint = folder / "checkpoint"
    pipeline.save_pretrained(checkpoint)
    tokenizer.save(raw, checkpoint / "tokenizer")
    (checkpoint / "rushes.json").write_text(json.dumps({"size": "832x480", "frames": 1, "steps": 6, "fps": 16}))
    (checkpoint / "tiny_decoder").mkdir()
    tiny = tiny_decoder.TinyDecoder(16, (256, 128, 64, 64), 1, (1, 2, 2))
    save_file(tiny.state_dict(), checkpoint / "tiny_decoder/taew2_1.safetensors")
    return checkpoint


def diffusers_seconds(checkpoint: str) -> float:
    """Seconds until diffusers' pipeline shows its first picture, without loading: the best of four."""
    import torch
    from diffusers import WanPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count())
    pipeline = WanPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    settings = json.loads(Path(checkpoint, "rushes.json").read_text())
    width, height = map(int, settings["size"].split("x"))
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        pipeline(
            prompt=PROMPT,
            negative_prompt=settings.get("negative", ""),
            width=width,
            height=height,
            num_frames=settings["frames"],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"][0],
            generator=torch.Generator().manual_seed(3),
            output_type="np",
        )
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
