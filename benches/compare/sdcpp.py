#!/usr/bin/env python3
"""Compares a whole step of the 1.3B shape, 30 layers, in stable-diffusion.cpp and in Rushes, alternating.

    sdcpp.py build --out DIR [--source DIR] [--tinyblas]
    sdcpp.py time --peer DIR/build/sdcpp_step --ours rushes [--rounds N] [--json FILE]
    sdcpp.py join FILE...

`build` downloads the source of stable-diffusion.cpp (in the PyPI package stable-diffusion-cpp-python 0.4.7, or unpacked
at `--source`), builds its library for this processor, and builds `sdcpp_step`, which runs one step with the classes of
the library and random weights. It needs cmake and ninja.

`time` runs one step of each per round: stable-diffusion.cpp with f16 weights, and `rushes bench step` in int8, with
ONNX Runtime kernels and with Rushes kernels. 1,950 tokens are a clip of 416x240 with 17 frames. The text has 512 rows
on all sides; Rushes kernels merge equal rows. Times contain no loading and no warm-up.

A round takes minutes: `--json` writes its times, either side can be timed alone, and `join` joins several files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "stable-diffusion-cpp-python==0.4.7"
HERE = Path(__file__).resolve().parent
PROJECT = """cmake_minimum_required(VERSION 3.21)
project(sdcpp_step CXX C)
set(CMAKE_BUILD_TYPE Release)
set(SD_BUILD_EXAMPLES OFF CACHE BOOL "" FORCE)
set(GGML_NATIVE ON CACHE BOOL "" FORCE)
set(GGML_OPENMP ON CACHE BOOL "" FORCE)
set(GGML_LLAMAFILE {tinyblas} CACHE BOOL "" FORCE)
set(SD_WEBP OFF CACHE BOOL "" FORCE)
set(SD_WEBM OFF CACHE BOOL "" FORCE)
add_subdirectory({source} sd)
add_executable(sdcpp_step {here}/sdcpp_step.cpp)
target_compile_features(sdcpp_step PRIVATE cxx_std_17)
target_compile_definitions(sdcpp_step PRIVATE GGML_MAX_NAME=128)
target_include_directories(sdcpp_step PRIVATE {source} {source}/src {source}/thirdparty)
target_link_libraries(sdcpp_step PRIVATE stable-diffusion)
"""
# Targets: how many times as fast as the peer's step a step of Rushes should be.
WANTED = {"int8, onnxruntime": 6.0, "int8, rushes": 10.0}


def main() -> None:
    arguments = parse()
    match arguments.command:
        case "build":
            build(arguments.out, arguments.source, arguments.tinyblas)
        case "time":
            report = timed(arguments)
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=2) + "\n")
            print(markdown([report]))
        case "join":
            print(markdown([json.loads(path.read_text()) for path in arguments.files]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--source", type=Path, help="folder of the unpacked package")
    making.add_argument("--tinyblas", action="store_true", help="enable ggml's faster products")
    timing = commands.add_parser("time")
    timing.add_argument("--peer", type=Path, help="path of the program sdcpp_step")
    timing.add_argument("--ours", help="path of the program rushes")
    timing.add_argument("--tokens", default="5,15,26", metavar="F,H,W")
    timing.add_argument("--rounds", type=int, default=1)
    timing.add_argument("--threads", type=int, default=os.cpu_count())
    timing.add_argument("--type", choices=["f16", "q8_0"], default="f16", help="number format of the peer's weights")
    timing.add_argument("--flash", action="store_true", help="use flash attention in the peer")
    timing.add_argument("--json", type=Path)
    joining = commands.add_parser("join")
    joining.add_argument("files", type=Path, nargs="+")
    return parser.parse_args()


def build(out: Path, source: Path | None, tinyblas: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if source is None:
        name = PACKAGE.partition("==")[0]
        run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, "--dest", str(out), PACKAGE])
        with tarfile.open(next(out.glob("stable_diffusion_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(out, filter="data")
        source = next(out.glob("stable_diffusion_cpp_python-*/"))
    source = (source / "vendor" / "stable-diffusion.cpp").resolve()
    project = out / "project"
    project.mkdir(exist_ok=True)
    (project / "CMakeLists.txt").write_text(PROJECT.format(source=source, here=HERE, tinyblas="ON" if tinyblas else "OFF"))
    run(["cmake", "-S", str(project), "-B", str(out / "build"), "-G", "Ninja"])
    run(["cmake", "--build", str(out / "build"), "--target", "sdcpp_step"])
    print(out / "build" / "sdcpp_step")


def run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


def timed(arguments: argparse.Namespace) -> dict:
    """Times one step of every kind in every round."""
    frames, rows, columns = arguments.tokens.split(",")
    threads = str(arguments.threads)
    times: dict[str, list[float]] = {}
    report = {"tokens": int(frames) * int(rows) * int(columns), "threads": arguments.threads, "seconds": times}
    for _ in range(arguments.rounds):
        if arguments.peer:
            peer = [str(arguments.peer), frames, rows, columns, threads, "1", arguments.type, str(int(arguments.flash))]
            answer = json.loads(run(peer).splitlines()[-1])
            times.setdefault(answer["kind"], []).extend(answer["seconds"])
        if arguments.ours:
            command = [arguments.ours, "bench", "step", "--layers", "30", "--precision", "int8", "--runs", "1", "--json"]
            command += ["--tokens", arguments.tokens, "--threads", threads]
            answer = json.loads(run(command).splitlines()[-1])
            for result in answer["results"]:
                times.setdefault(f"int8, {result['kernels']}", []).extend(result["seconds"])
                report.setdefault("share_of_peak", {})[f"int8, {result['kernels']}"] = result["share_of_peak"]
            report.setdefault("peaks", []).append(answer["peaks"])
    return report


def markdown(reports: list[dict]) -> str:
    times: dict[str, list[float]] = {}
    for report in reports:
        for kind, seconds in report["seconds"].items():
            times.setdefault(kind, []).extend(seconds)
    peers = [kind for kind in times if kind.startswith("stable")]
    lines = [
        f"30 layers, {reports[0]['tokens']} tokens, {reports[0]['threads']} threads",
        "",
        "| kind | runs | min s | median s | times as fast as the peer (min) | target |",
        "|---|---|---|---|---|---|",
    ]
    for kind, seconds in times.items():
        ratio = min(min(times[peer]) for peer in peers) / min(seconds) if peers else None
        cells = [kind, str(len(seconds)), f"{min(seconds):.2f}", f"{statistics.median(seconds):.2f}"]
        cells += [f"{ratio:.2f}" if ratio else "", str(WANTED.get(kind, ""))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
