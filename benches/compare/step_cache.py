#!/usr/bin/env python3
"""Compares the time that `--step-cache easycache` saves with the steps that it saves; the two kinds alternate in one run.

    step_cache.py --ours target/release/rushes [--rounds N] [--steps N] [--threshold T] [--bundle BUNDLE]

The model is that of `previews.py --shape wan`: the 1.3B shape with four layers instead of 30 and random weights, clips of
one frame at 640x352 (880 tokens), no guidance. A step that is reused runs no graph, so time and steps should agree. Each
line has, for the clip without and with the cache: seconds of all steps, the steps that were reused, and the seconds that
are in no computed step. The last are what the cache itself costs; they vary less than the steps of a busy machine.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import previews


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="path of the program `rushes`")
    parser.add_argument("--bundle", help="a bundle of that shape, instead of exporting one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threshold", type=float, default=0.15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = arguments.bundle or str(folder / "bundle")
        if not arguments.bundle:
            previews.run([arguments.ours, "export", previews.wan(folder), "--out", bundle, "--no-verify", "--copy"])
        pairs = []
        for number in range(arguments.rounds + 1):
            pair = [clip(arguments, bundle, cache, folder) for cache in ("off", f"easycache={arguments.threshold}")]
            # The first round warms the page cache.
            if number:
                pairs.append(pair)
                print(json.dumps([[round(value, 3) for value in found] for found in pair]), flush=True)
    plain, cached = zip(*pairs)
    saved_steps = cached[0][1] / arguments.steps
    saved_time = [1 - short[0] / long[0] for long, short in pairs]
    shortest = 1 - min(found[0] for found in cached) / min(found[0] for found in plain)
    print(f"steps saved {saved_steps:.1%}, time saved: median {statistics.median(saved_time):.1%}, of the shortest runs {shortest:.1%}")


def clip(arguments, bundle: str, cache: str, folder: Path) -> tuple[float, int, float]:
    """Seconds of all steps of a clip, the number of those that were reused, and the seconds in no computed step."""
    settings = ["--size", "640x352", "--frames", 1, "--steps", arguments.steps, "--guidance", 1, "--step-cache", cache]
    command = [arguments.ours, "generate", previews.PROMPT, "--bundle", bundle, "--seed", 3, "--json"]
    lines = previews.run([*command, *settings, "--progress", "none", "-o", folder / "out.mp4"])
    done = next(line for line in map(json.loads, lines.splitlines()) if line["event"] == "done")
    times = done["timing"]
    seconds, reused = times["whole"] - times["text"] - times["decode"], len(done["reused_steps"])
    return seconds, reused, seconds - times["step"] * (done["steps_done"] - reused)


if __name__ == "__main__":
    main()
