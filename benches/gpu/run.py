#!/usr/bin/env python3
"""Measures Rushes on the accelerators of this machine, beside PyTorch, and writes the tables of docs/benchmarks.md.

    run.py --rushes PATH [--ep cuda,tensorrt,tensorrt-rtx] [--minutes 15] [--out FOLDER]
    run.py --rushes PATH --ep openvino --dry-run      the same at a tiny size, on a machine without a GPU
    run.py --rushes PATH --plan                       prints what would run, in its order, and runs nothing

Weights are random, at the width of an expert of Wan2.2-T2V-A14B, two layers. The rows that matter most come first: CUDA
in bf16 at 832x480 of 17 frames, then of 81 frames, then the decoder. Every row is printed as soon as it is known, as a
line of JSON, and the tables are written again after each. What does not fit in `--minutes` is a row that says so, and
so is what cannot run here, with the reason.

Needs `rushes`, built with its embedded model. The rows of PyTorch also need torch and diffusers in the Python of
`--python`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import tables

HERE = Path(__file__).resolve().parent
MINI = HERE.parents[1] / "models/mini/checkpoint"
# Time that is left for the last tables.
RESERVE = 5.0
# A graph that takes longer than this to write, open and run is not waited for.
LONGEST = 240.0


@dataclass(frozen=True)
class Sizes:
    """What is measured: a denoiser, clips as token grids and latents, and the text encoder."""

    shape: str
    layers: int
    # Frames, rows and columns of patches.
    steps: dict
    # Latent frames, height, width.
    decodes: dict
    text_layers: int
    text_tokens: int
    runs: int
    # Size and frames of the clip whose first preview is timed, and its steps.
    clip: tuple


FULL = Sizes(
    shape="a14b",
    layers=2,
    steps={"480p17": (5, 30, 52), "480p81": (21, 30, 52), "720p81": (21, 45, 80)},
    decodes={"480p17": (5, 60, 104)},
    text_layers=2,
    text_tokens=512,
    runs=5,
    clip=("112x64", 17, 20),
)
TINY = Sizes(
    shape="1.3b",
    layers=1,
    steps={"480p17": (1, 4, 6), "480p81": (2, 4, 6), "720p81": (3, 4, 6)},
    decodes={"480p17": (2, 4, 6)},
    text_layers=1,
    text_tokens=16,
    runs=1,
    clip=("32x32", 5, 2),
)


@dataclass(frozen=True)
class Item:
    """One measurement: the part of the tables that it is in, its name there, and who makes it."""

    section: str
    name: str
    runner: str
    # Arguments of `rushes`, or of peers.py.
    command: tuple
    kind: str = "rushes"
    device: str = ""


@dataclass
class Run:
    arguments: argparse.Namespace
    sizes: Sizes
    deadline: float
    rows: list = field(default_factory=list)

    def left(self) -> float:
        return self.deadline - time.monotonic() - RESERVE


def main() -> None:
    arguments = parse()
    sizes = TINY if arguments.dry_run else FULL
    plan = [item for item in items(sizes, arguments) if not arguments.only or item.section in arguments.only]
    if arguments.plan:
        for item in plan:
            print(f"{item.section:8} {item.name:10} {item.runner:24} {' '.join(item.command)}")
        return
    run = Run(arguments, sizes, time.monotonic() + 60 * arguments.minutes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rows.jsonl").write_text("")
    add(run, machine(arguments))
    with tempfile.TemporaryDirectory(prefix="rushes-gpu-") as scratch:
        for item in plan:
            add(run, measured(run, item, Path(scratch)))
    print((arguments.out / "tables.md").read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rushes", type=Path, required=True, help="path of the program `rushes`")
    parser.add_argument("--ep", type=lambda text: text.split(","), help="execution providers, in this order")
    parser.add_argument("--minutes", type=float, default=15.0, help="time for all of it")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"sections: {', '.join(tables.SECTIONS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of rows.jsonl and tables.md")
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch and diffusers")
    parser.add_argument("--without-torch", action="store_true", help="leave the rows of PyTorch out")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes")
    parser.add_argument("--plan", action="store_true", help="print what would run")
    arguments = parser.parse_args()
    default = ["openvino"] if arguments.dry_run else ["cuda", "tensorrt", "tensorrt-rtx"]
    arguments.ep = arguments.ep or default
    return arguments


def items(sizes: Sizes, arguments: argparse.Namespace) -> list[Item]:
    """Everything that is measured, the most important first."""
    first, *others = arguments.ep
    steps = list(sizes.steps)
    ordered = [step(sizes, steps[0], first), step(sizes, steps[1], first)]
    ordered += [decode(sizes, name, first) for name in sizes.decodes]
    torch = [] if arguments.without_torch else ["sdpa", "compile"]
    ordered += [peer(sizes, "step", name, "sdpa", arguments) for name in steps[:2] if torch]
    ordered += [peer(sizes, "decode", name, "sdpa", arguments) for name in sizes.decodes if torch]
    ordered += [text(sizes, first), preview(sizes, first)]
    ordered += [step(sizes, name, first) for name in steps[2:]]
    ordered += [peer(sizes, "step", name, "sdpa", arguments) for name in steps[2:] if torch]
    ordered += [peer(sizes, "text", "text", "sdpa", arguments)] if torch else []
    ordered += [peer(sizes, "step", name, "compile", arguments) for name in steps if torch]
    for device in others:
        ordered += [step(sizes, name, device) for name in steps]
        ordered += [decode(sizes, name, device) for name in sizes.decodes]
        ordered += [text(sizes, device), preview(sizes, device)]
    ordered += [Item("fp8", f"mini, {device}", device, (), "fp8", device) for device in arguments.ep]
    if torch:
        ordered.append(Item("routes", "one product", "onnxruntime", (), "routes"))
    return ordered


def bench(sizes: Sizes, what: str, device: str, arguments: list[str]) -> tuple:
    """A call of `rushes bench`. The CPU, which only a dry run names, computes in f32."""
    on_device = ["--ep", device, "--without-cpu", "--precision", "bf16"]
    if device == "cpu":
        on_device = ["--precision", "f32"]
    elif device == "webgpu":
        on_device[-1] = "f32"
    return ("bench", what, *arguments, *on_device, "--runs", str(sizes.runs), "--progress", "none", "--json")


def step(sizes: Sizes, name: str, device: str) -> Item:
    tokens = ",".join(map(str, sizes.steps[name]))
    arguments = ["--shape", sizes.shape, "--layers", str(sizes.layers), "--tokens", tokens]
    return Item("step", name, f"Rushes, {device}", bench(sizes, "step", device, arguments), device=device)


def decode(sizes: Sizes, name: str, device: str) -> Item:
    latent = ",".join(map(str, sizes.decodes[name]))
    command = bench(sizes, "decode", device, ["--latent", latent])
    return Item("decode", name, f"Rushes, {device}", command, device=device)


def text(sizes: Sizes, device: str) -> Item:
    arguments = ["--layers", str(sizes.text_layers), "--tokens", str(sizes.text_tokens)]
    return Item("text", "text", f"Rushes, {device}", bench(sizes, "text", device, arguments), device=device)


def preview(sizes: Sizes, device: str) -> Item:
    """A clip of mini: how soon the first preview is shown, from opening the graphs on."""
    size, frames, steps = sizes.clip
    command = ("generate", "A red ball bounces on the beach", "--seed", "1", "--preview", "rgb", "--size", size)
    command += ("--frames", str(frames), "--steps", str(steps), "--ep", device, "--progress", "none", "--json")
    return Item("preview", f"mini, {size}", f"Rushes, {device}", command, "preview", device)


def peer(sizes: Sizes, what: str, name: str, mode: str, arguments: argparse.Namespace) -> Item:
    size = {"step": sizes.steps, "decode": sizes.decodes}.get(what, {}).get(name, (sizes.text_tokens,))
    layers = sizes.text_layers if what == "text" else sizes.layers
    command = (what, "--size", ",".join(map(str, size)), "--shape", sizes.shape, "--layers", str(layers), "--mode", mode)
    command += ("--runs", str(sizes.runs), "--device", "cpu" if arguments.dry_run else "cuda")
    label = "PyTorch bf16, SDPA" if mode == "sdpa" else "PyTorch bf16, torch.compile"
    return Item(what, name, label, command, "peer")


def machine(arguments: argparse.Namespace) -> dict:
    row = {"section": "machine", "dry_run": arguments.dry_run}
    try:
        done = subprocess.run([arguments.rushes, "doctor", "--json"], capture_output=True, text=True, timeout=60)
        row["doctor"] = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise SystemExit(f"{arguments.rushes} doctor --json fails: {error}") from None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        row["gpu"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        row["gpu"] = ""
    return row


def add(run: Run, row: dict) -> None:
    """Prints a row, and writes the tables again."""
    run.rows.append(row)
    line = json.dumps(row, ensure_ascii=False)
    print(line, flush=True)
    with (run.arguments.out / "rows.jsonl").open("a") as file:
        file.write(line + "\n")
    part = run.arguments.out / "tables.md.part"
    part.write_text(tables.markdown(run.rows))
    part.replace(run.arguments.out / "tables.md")


def measured(run: Run, item: Item, scratch: Path) -> dict:
    row = {"section": item.section, "name": item.name, "runner": item.runner}
    if run.left() <= 0:
        return row | {"error": f"not measured: {run.arguments.minutes:g} minutes are over"}
    began = time.monotonic()
    try:
        match item.kind:
            case "peer":
                found = json_line([run.arguments.python, HERE / "peers.py", *item.command], run)[0]
            case "routes":
                tiny = ["--tiny"] if run.arguments.dry_run else []
                found = json_line([run.arguments.python, HERE / "fp8.py", *tiny], run)[0]
            case "fp8":
                found = fp8(run, item.device, scratch)
            case "preview":
                found = first_preview(run, item, scratch)
            case _:
                found = of_bench(*json_line([run.arguments.rushes, *item.command], run))
    except Failed as error:
        found = {"error": str(error)}
    return row | found | {"took_s": round(time.monotonic() - began, 1)}


class Failed(Exception):
    """A command failed; the text is the last line that it printed."""


def json_line(command: list, run: Run, at_most: float = LONGEST) -> tuple[dict, int | None]:
    """The last line of JSON that a command prints, and the most memory of a GPU that it used, as nvidia-smi counts."""
    limit = min(run.left(), at_most)
    if limit <= 0:
        raise Failed("no time is left")
    words = [str(word) for word in command]
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            with GpuMemory(process.pid) as memory:
                try:
                    out, err = process.communicate(timeout=limit)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    raise Failed(f"stopped after {limit:.0f} s") from None
    except OSError as error:
        raise Failed(f"{words[0]}: {error.strerror}") from None
    if process.returncode != 0:
        raise Failed(reason(err, out) or f"exit code {process.returncode}")
    for line in reversed(out.splitlines()):
        try:
            return json.loads(line), memory.most
        except ValueError:
            continue
    raise Failed("no JSON was printed")


def reason(*texts: str) -> str:
    """Why a command failed: what and why of an error of `rushes`, or the last lines that it printed."""
    for text in texts:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for line in reversed(lines):
            try:
                error = json.loads(line)
                return f"{error['what']}: {error['why']}"
            except (ValueError, KeyError, TypeError):
                continue
        if lines:
            return " ".join(lines[-3:])[:400]
    return ""


class GpuMemory:
    """Samples the memory of GPUs that a process uses. `most` is in bytes; None if nvidia-smi does not list it."""

    def __init__(self, pid: int) -> None:
        self.pid, self.most, self.done = pid, None, threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def __enter__(self) -> "GpuMemory":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def sample(self) -> None:
        query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        while not self.done.wait(0.25):
            try:
                listed = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
            except (OSError, subprocess.TimeoutExpired):
                return
            for line in listed.splitlines():
                pid, _, used = line.partition(",")
                if pid.strip() == str(self.pid) and used.strip().isdigit():
                    self.most = max(self.most or 0, int(used) << 20)


def of_bench(answer: dict, gpu_memory: int | None) -> dict:
    """The row of an answer of `rushes bench`, which has one result."""
    result = answer["results"][-1]
    row = {"precision": result["precision"], "shape": answer["shape"], "gflop": answer["gflop"]}
    row |= {key: result[key] for key in ("ms", "median_ms", "first_frame_ms", "gflops")}
    row |= {"process_memory": gpu_memory}
    for facts in answer.get("accelerators", [])[-1:]:
        keys = ("opened_s", "first_run_s", "nodes", "on_cpu", "predicted_memory", "measured_memory")
        row |= {key: facts[key] for key in keys}
    return row


def first_preview(run: Run, item: Item, scratch: Path) -> dict:
    output = scratch / f"{item.device.replace(':', '-')}.mp4"
    answer, memory = json_line([run.arguments.rushes, *item.command, "-o", output], run)
    timing = answer["timing"]
    keys = ("loading", "text", "first_step", "step", "first_preview", "first_frame", "decode", "whole")
    row = {"seconds": {key: timing.get(key) for key in keys}, "process_memory": memory}
    return row | {"nodes": placed(answer.get("nodes", []))}


def placed(graphs: list[dict]) -> dict:
    """The nodes of all graphs by provider."""
    nodes: dict[str, int] = {}
    for graph in graphs:
        for provider, count in graph["nodes"].items():
            nodes[provider] = nodes.get(provider, 0) + count
    return nodes


def fp8(run: Run, device: str, scratch: Path) -> dict:
    """mini in bf16 and in fp8: the error of fp8 that `rushes quantize` found, and the memory of its experts."""
    rushes, bundle = run.arguments.rushes, scratch / "mini-fp8"
    if not (bundle / "quantization.fp8.json").exists():
        prompts = scratch / "prompts"
        prompts.write_text("A red ball bounces on the beach\nA blue bird in the city\n")
        export = [rushes, "export", MINI, "--out", bundle, "--target", "cpu", "--target", "plain", "--weights", "bf16", "--json"]
        json_line(export, run) if not bundle.exists() else None
        json_line([rushes, "calibrate", bundle, "--prompts", prompts, "--json"], run)
        json_line([rushes, "quantize", bundle, "--scheme", "fp8", "--clips", "2", "--sensitivity", "estimated", "--json"], run)
    row = {"psnr": lowest_psnr(bundle), "bytes": weights_of(bundle)}
    tokens = ["--tokens", "5,4,7"]
    for precision in ("bf16", "fp8"):
        command = [rushes, "bench", "step", "--bundle", bundle, *tokens, "--ep", device, "--without-cpu"]
        command += ["--precision", precision, "--runs", "1", "--progress", "none", "--json"]
        try:
            row[precision] = of_bench(*json_line(command, run))
        except Failed as error:
            row[precision] = {"error": str(error)}
    return row


def lowest_psnr(bundle: Path) -> float | None:
    """The lowest PSNR of the clips in fp8, in decibels, as `rushes quantize` reports it."""
    report = json.loads((bundle / "quality.json").read_text())
    found = [value for name, value in numbers(report) if name == "psnr"]
    return min(found, default=None)


def numbers(value) -> list[tuple[str, float]]:
    """Every number of a JSON value, with its name."""
    if isinstance(value, list):
        return [pair for inner in value for pair in numbers(inner)]
    if not isinstance(value, dict):
        return []
    here = [(name, inner) for name, inner in value.items() if isinstance(inner, (int, float))]
    return here + [pair for inner in value.values() for pair in numbers(inner)]


def weights_of(bundle: Path) -> dict:
    """Bytes of the weights of the experts, by number format."""
    files = list((bundle / "experts").rglob("*.safetensors"))
    is_fp8 = [file for file in files if file.name.startswith("fp8")]
    others = [file for file in files if file not in is_fp8]
    return {"fp8": sum(file.stat().st_size for file in is_fp8), "bf16": sum(file.stat().st_size for file in others)}


if __name__ == "__main__":
    main()
