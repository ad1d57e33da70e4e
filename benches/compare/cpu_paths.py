#!/usr/bin/env python3
"""Compares the instruction paths of Rushes kernels with each other and with PyTorch bf16, in one table.

    cpu_paths.py --kernels PATH [--examples DIR] [--paths amx,avx512-vnni] [--tokens 5,15,26;5,30,52] [--rounds N]

`--kernels` names the program `bench-kernels`, `--examples` the folder with the kernels' examples `shapes` and
`convolution`:

    cargo build --release -p benches && cargo build --release -p rushes-kernels --examples

Steps are two layers of the 1.3B shape. One process for each path, and PyTorch in this one, are loaded and warmed up
before the first measurement; then they alternate, one step of each kind per round. Ratios are of the shortest and of
the median steps of a run; absolute times of two machines cannot be compared. The examples alternate products and
convolutions by path.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

# Python puts this folder first in the search path, where `diffusers.py` would hide the package.
HERE = Path(__file__).resolve().parent
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import importlib.util  # noqa: E402

KINDS = ["rushes-int8", "rushes-bf16"]


def main() -> None:
    arguments = parse()
    paths = arguments.paths.split(",")
    compare = None if arguments.no_torch else load_compare()
    print_machine(compare, arguments.threads)
    for grid in arguments.tokens.split(";"):
        print_steps(arguments, compare, paths, grid)
    if arguments.examples:
        for name, words in [("shapes", ["1950", str(arguments.threads), "0.5"]), ("convolution", [str(arguments.threads), "0.5"])]:
            print(f"\n```\n{run([str(Path(arguments.examples) / name), *words])}```")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", required=True, metavar="PATH", help="path of the program `bench-kernels`")
    parser.add_argument("--examples", metavar="DIR", help="folder of the kernels' examples; steps only without it")
    parser.add_argument("--paths", default="amx,avx512-vnni", help="the first is compared with the others")
    parser.add_argument("--tokens", default="5,15,26;5,30,52", metavar="F,H,W;...", help="token grids of the step")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-torch", action="store_true", help="do not time PyTorch, which need not be installed then")
    return parser.parse_args()


def load_compare():
    """Loads `diffusers.py` of this folder under another name, because its own would hide the package."""
    spec = importlib.util.spec_from_file_location("compare_diffusers", HERE / "diffusers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def print_machine(compare, threads: int) -> None:
    if compare is None:
        return
    compare.torch.set_num_threads(threads)
    compare.torch.manual_seed(0)
    compare.diffusers.utils.logging.set_verbosity_error()
    machine = compare.describe_machine(threads)
    print(", ".join(f"{key} {' '.join(v) if isinstance(v, list) else v}" for key, v in machine.items()))


def print_steps(arguments: argparse.Namespace, compare, paths: list[str], grid: str) -> None:
    sizes = [int(size) for size in grid.split(",")]
    tokens = sizes[0] * sizes[1] * sizes[2]
    processes = {path: start(arguments, path, grid) for path in paths}
    peaks = {path: json.loads(process.stdout.readline()) for path, process in processes.items()}
    times: dict[str, list[float]] = {}
    torch_step = None
    if compare:
        torch_step = compare.denoising_step(tuple(sizes), arguments.layers, compare.torch.bfloat16)
        compare.seconds(torch_step)
    for _ in range(arguments.rounds):
        for path, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            for _ in KINDS:
                answer = json.loads(process.stdout.readline())
                times.setdefault(f"{answer['kind']}, {path}", []).append(answer["seconds"])
        if torch_step:
            times.setdefault("torch bf16", []).append(compare.seconds(torch_step))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    print(f"\n{tokens} tokens, {arguments.layers} layers, {arguments.rounds} rounds, {arguments.threads} threads")
    for path, peak in peaks.items():
        rates = ", ".join(f"{name} {value:.0f}" for name, value in peak.items() if isinstance(value, float))
        print(f"peaks of {path}: {rates}")
    print("\n| kind | shortest s | median s |\n|---|---|---|")
    for kind, found in times.items():
        print(f"| {kind} | {min(found):.3f} | {statistics.median(found):.3f} |")
    print("\n| how many times as fast | shortest | median |\n|---|---|---|")
    for faster, slower in pairs(paths, list(times)):
        best, middle = (f(times[slower]) / f(times[faster]) for f in (min, statistics.median))
        print(f"| {faster} against {slower} | {best:.2f} | {middle:.2f} |", flush=True)


def pairs(paths: list[str], kinds: list[str]):
    """Each kind of the first path with that of the other paths, and every kind with PyTorch."""
    for kind in KINDS:
        for path in paths[1:]:
            yield f"{kind}, {paths[0]}", f"{kind}, {path}"
    for kind in kinds if "torch bf16" in kinds else []:
        if kind != "torch bf16":
            yield kind, "torch bf16"


def start(arguments: argparse.Namespace, path: str, grid: str) -> subprocess.Popen:
    command = [arguments.kernels, "--layers", str(arguments.layers), "--tokens", grid, "--only", ",".join(KINDS)]
    command += ["--threads", str(arguments.threads), "--cpu-path", path, "--turns"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
