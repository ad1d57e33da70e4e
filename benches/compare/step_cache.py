#!/usr/bin/env python3
"""Compares the time that `--step-cache easycache` saves with the steps that it saves; the two kinds alternate in one run.

    step_cache.py --ours target/release/rushes [--rounds N] [--steps N] [--threshold T] [--bundle BUNDLE]

The model is that of `previews.py --shape wan`: the 1.3B shape with four layers instead of 30 and random weights, clips of
one frame at 640x352 (880 tokens), no guidance. A step that is reused runs no graph, so time and steps should agree; what
is missing is the cost of the cache itself, which is seven times as large a share of a step as with all layers.
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
                print(json.dumps([[round(seconds, 2), reused] for seconds, reused in pair]), flush=True)
    saved_steps = pairs[0][1][1] / arguments.steps
    saved_time = [1 - cached / plain for (plain, _), (cached, _) in pairs]
    print(f"steps saved {saved_steps:.1%}, time saved: median {statistics.median(saved_time):.1%}, "
          f"of the shortest runs {1 - min(cached for _, (cached, _) in pairs) / min(plain for (plain, _), _ in pairs):.1%}")


def clip(arguments, bundle: str, cache: str, folder: Path) -> tuple[float, int]:
    """Seconds of all steps of a clip, and the number of those that were reused."""
    settings = ["--size", "640x352", "--frames", 1, "--steps", arguments.steps, "--guidance", 1, "--step-cache", cache]
    command = [arguments.ours, "generate", previews.PROMPT, "--bundle", bundle, "--seed", 3, "--json"]
    lines = previews.run([*command, *settings, "--progress", "none", "-o", folder / "out.mp4"])
    done = next(line for line in map(json.loads, lines.splitlines()) if line["event"] == "done")
    times = done["timing"]
    return times["whole"] - times["text"] - times["decode"], len(done["reused_steps"])


if __name__ == "__main__":
    main()
