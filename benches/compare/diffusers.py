#!/usr/bin/env python3
"""Times diffusers' modules in PyTorch and Rushes on this machine, alternating in one run.

    diffusers.py [--ours PATH] [--kernels PATH] [--what step,decode,text] [--rounds N] [--json FILE]
    diffusers.py --join FILE...

Three measurements, with random weights on both sides:
  step    one denoising step of Wan2.1-1.3B's width (12 heads x 128, ffn 8960), 4 layers, 1,950 tokens, 512 text rows
  decode  the whole Wan2.1 VAE (base 96) on 3 latent frames of 30x52, for 9 frames of 240x416
  text    layers of umT5-XXL (width 4096, 64 heads x 64, ffn 10240)

`--ours` names the program `rushes`, which is run as `PATH bench step|decode|text ... --runs 1 --json`, in all
precisions or in those of `--precisions`, steps with ONNX Runtime kernels and with Rushes kernels; `--ep openvino` adds rows on that device. `--kernels` names
`bench-kernels`, which adds ONNX Runtime's INT8 products with scales that are computed at run time. Times contain no
loading and no warm-up on either side. A long comparison can be split into several calls, each of which alternates all
kinds: `--json` writes the times of a call, `--join` joins them.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

# Python puts this folder first in the search path, where this file would hide the package.
HERE = Path(__file__).resolve().parent
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import diffusers  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoencoderKLWan, WanTransformer3DModel  # noqa: E402
from transformers import UMT5Config, UMT5EncoderModel  # noqa: E402

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
HEADS, HEAD_DIM, FFN, LATENT_CHANNELS = 12, 128, 8960, 16
TEXT_WIDTH, TEXT_ROWS, TEXT_HEADS, TEXT_HEAD_DIM, TEXT_FFN = 4096, 512, 64, 64, 10240
MATMUL_SIZE = 4096
# Kinds that only `bench-kernels` has: ONNX Runtime's products with scales that are computed at run time.
DYNAMIC_INT8 = ["onnxruntime-int8"]
# Targets: how many times as fast one kind should be as another: (faster, slower, ratio at 1,950 tokens, at 7,800).
WANTED = [
    ("int8", "f32", 2.3, None),
    ("int8", "torch bf16", 1.6, None),
    ("int8, rushes", "int8", 1.6, None),
    ("int8, rushes", "torch bf16", 2.7, 3.3),
    ("bf16, rushes", "torch bf16", 1.4, None),
]
WANTED_AT = [1950, 7800]
# Below this share of its threads' time, PyTorch waited for other programs, and the times are not reliable.
QUIET_SHARE = 0.85


def main() -> None:
    arguments = parse()
    if arguments.join:
        reports = [json.loads(path.read_text()) for path in arguments.join]
        print(markdown(reports[0]["machine"], reports[0]["matmul_gflops"], joined(reports)))
        return
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    diffusers.utils.logging.set_verbosity_error()
    machine = describe_machine(arguments.threads)
    peaks = {dtype: matmul_gflops(DTYPES[dtype]) for dtype in arguments.dtypes}
    results = []
    for what in arguments.what:
        print(f"timing {what} ...", file=sys.stderr)
        results.append(compare(what, arguments))
    print(markdown(machine, peaks, results))
    if arguments.json:
        report = {"machine": machine, "matmul_gflops": peaks, "results": results}
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", help="path of the program `rushes`; without it only PyTorch is timed")
    parser.add_argument("--kernels", help="path of the program `bench-kernels`, for dynamic INT8 products")
    parser.add_argument("--join", nargs="+", type=Path, metavar="FILE", help="join files of --json, without timing")
    parser.add_argument("--ep", help="also time the graphs on these devices, such as openvino")
    parser.add_argument("--precisions", help="precisions of rushes, such as f32,int8; all by default")
    parser.add_argument("--what", type=names(["step", "decode", "text"]), default="step,decode,text")
    parser.add_argument("--dtypes", type=names(list(DTYPES)), default="f32,bf16", help="PyTorch dtypes of step, text")
    parser.add_argument("--decode-dtypes", type=names(list(DTYPES)), default="f32", help="PyTorch dtypes of decode")
    parser.add_argument("--rounds", type=int, default=3, help="number of alternating rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--layers", type=int, default=4, help="number of layers of the denoising step")
    parser.add_argument("--tokens", type=triple, default="5,15,26", metavar="F,H,W", help="token grid of the step")
    parser.add_argument("--latent", type=triple, default="3,30,52", metavar="T,H,W", help="latent size of the decode")
    parser.add_argument("--text-layers", type=int, default=2)
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--json", metavar="FILE", help="write all times to this file")
    return parser.parse_args()


def names(known: list[str]):
    def parse_names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}, choose from {', '.join(known)}")
        return chosen

    return parse_names


def triple(text: str) -> tuple[int, int, int]:
    first, second, third = (int(number) for number in text.split(","))
    return first, second, third


def compare(what: str, arguments: argparse.Namespace) -> dict:
    """Times Rushes, then PyTorch in every dtype, in each round, so that a slow phase of the machine affects both."""
    dtypes = arguments.decode_dtypes if what == "decode" else arguments.dtypes
    build, gflop, command = work(what, arguments)
    runs = {dtype: build(DTYPES[dtype]) for dtype in dtypes}
    # A whole decode is long enough without a warm-up.
    for run in runs.values() if what != "decode" else []:
        seconds(run)
    result = {"what": what, "shape": " ".join(command), "gflop": gflop, "torch": {dtype: [] for dtype in dtypes}}
    wall, cpu = time.perf_counter(), time.process_time()
    waited = 0.0
    for _ in range(arguments.rounds):
        if arguments.ours:
            started = time.perf_counter()
            command_line = [arguments.ours, "bench", *command, "--threads", str(arguments.threads), "--runs", "1", "--json"]
            precisions = ["--precision", arguments.precisions] if arguments.precisions else []
            devices = ["--ep", arguments.ep] if arguments.ep else []
            add_rushes(result, run_rushes(command_line + precisions + devices)[-1])
            waited += time.perf_counter() - started
        if arguments.kernels and what == "step":
            started = time.perf_counter()
            command_line = [arguments.kernels, *command[1:], "--threads", str(arguments.threads), "--runs", "1"]
            for line in run_rushes(command_line + ["--only", ",".join(DYNAMIC_INT8)])[1:]:
                result.setdefault("ours", {}).setdefault(f"{line['kind']}, dynamic", []).extend(line["seconds"])
            waited += time.perf_counter() - started
        for dtype, run in runs.items():
            result["torch"][dtype].append(seconds(run))
    torch_wall = time.perf_counter() - wall - waited
    result["torch_cpu_share"] = (time.process_time() - cpu) / (torch_wall * arguments.threads)
    return result


def work(what: str, arguments: argparse.Namespace):
    """Returns a builder of the timed call for a dtype, its GFLOP if known, and the arguments of `rushes bench`."""
    match what:
        case "step":
            grid, layers = arguments.tokens, arguments.layers
            command = ["step", "--layers", str(layers), "--tokens", ",".join(map(str, grid))]
            return lambda dtype: denoising_step(grid, layers, dtype), step_gflop(grid, layers), command
        case "decode":
            command = ["decode", "--latent", ",".join(map(str, arguments.latent))]
            return lambda dtype: decode(arguments.latent, dtype), None, command
        case "text":
            tokens, layers = arguments.text_tokens, arguments.text_layers
            command = ["text", "--tokens", str(tokens), "--layers", str(layers)]
            return lambda dtype: text_encoder(tokens, layers, dtype), text_gflop(tokens, layers), command


def denoising_step(grid: tuple[int, int, int], layers: int, dtype: torch.dtype):
    model = WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        ffn_dim=FFN,
        num_layers=layers,
    )
    model = in_dtype(model, dtype)
    frames, height, width = grid
    latent = torch.randn(1, LATENT_CHANNELS, frames, 2 * height, 2 * width, dtype=dtype)
    text = torch.randn(1, TEXT_ROWS, TEXT_WIDTH, dtype=dtype)
    timestep = torch.tensor([500])
    return lambda: model(latent, timestep, text, return_dict=False)


def decode(latent: tuple[int, int, int], dtype: torch.dtype):
    model = AutoencoderKLWan().to(dtype).eval()
    values = torch.randn(1, LATENT_CHANNELS, *latent, dtype=dtype)
    return lambda: model.decode(values, return_dict=False)


def text_encoder(tokens: int, layers: int, dtype: torch.dtype):
    # The embedding is one lookup per token: a small vocabulary saves 4 GB and changes no time.
    config = UMT5Config(
        vocab_size=1024,
        d_model=TEXT_WIDTH,
        d_kv=TEXT_HEAD_DIM,
        d_ff=TEXT_FFN,
        num_heads=TEXT_HEADS,
        num_layers=layers,
        dropout_rate=0.0,
    )
    model = UMT5EncoderModel(config).to(dtype).eval()
    ids = torch.randint(4, 1024, (1, tokens))
    mask = torch.ones_like(ids)
    return lambda: model(ids, mask)


def in_dtype(model: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """Converts the model as loading in that dtype does: diffusers keeps some modules of the transformer in f32."""
    kept = tuple(WanTransformer3DModel._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        if not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def step_gflop(grid: tuple[int, int, int], layers: int) -> float:
    """A multiply-add counts as two: projections, feed-forward, both attentions, text and patch embedding, head."""
    d, tokens = HEADS * HEAD_DIM, grid[0] * grid[1] * grid[2]
    block = tokens * (12 * d * d + 4 * d * FFN) + 4 * d * tokens * (tokens + TEXT_ROWS) + 4 * TEXT_ROWS * d * d
    ends = 2 * tokens * d * 4 * 2 * LATENT_CHANNELS + 2 * TEXT_ROWS * (TEXT_WIDTH * d + d * d)
    return (layers * block + ends) / 1e9


def text_gflop(tokens: int, layers: int) -> float:
    inner = TEXT_HEADS * TEXT_HEAD_DIM
    block = 2 * tokens * (4 * TEXT_WIDTH * inner + 3 * TEXT_WIDTH * TEXT_FFN) + 4 * tokens * tokens * inner
    return layers * block / 1e9


@torch.no_grad()
def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def run_rushes(command: list[str]) -> list[dict]:
    """The lines of the program's standard output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode} and {len(lines)} lines of output")
    return [json.loads(line) for line in lines]


def add_rushes(result: dict, answer: dict) -> None:
    for of_precision in answer["results"]:
        precision = of_precision["precision"]
        if of_precision["kernels"] != "onnxruntime":
            precision += f", {of_precision['kernels']}"
        elif of_precision["device"] != "cpu":
            precision += f", {of_precision['device']}"
        result.setdefault("ours", {}).setdefault(precision, []).extend(of_precision["seconds"])
        if of_precision["first_frame_ms"] is not None:
            first_frames = result.setdefault("ours_first_frame", {}).setdefault(precision, [])
            first_frames.append(of_precision["first_frame_ms"] / 1e3)
    result.setdefault("peaks", []).append(answer["peaks"])
    if result["gflop"] is None:
        result["gflop"] = answer["gflop"]


def joined(reports: list[dict]) -> list[dict]:
    """Joins the times of several calls that measured the same work."""
    joined_results: dict[tuple, dict] = {}
    for result in (result for report in reports for result in report["results"]):
        key = (result["what"], result["shape"])
        if key not in joined_results:
            joined_results[key] = result
            continue
        whole = joined_results[key]
        for part in ("torch", "ours", "ours_first_frame"):
            for name, times in result.get(part, {}).items():
                whole.setdefault(part, {}).setdefault(name, []).extend(times)
        whole.setdefault("peaks", []).extend(result.get("peaks", []))
        whole["torch_cpu_share"] = min(whole["torch_cpu_share"], result["torch_cpu_share"])
    return list(joined_results.values())


def wanted(result: dict) -> list[str]:
    """Rows of the target ratios, with the measured ones."""
    times = dict(result.get("ours", {})) | {f"torch {dtype}": found for dtype, found in result["torch"].items()}
    tokens = math.prod(int(size) for size in result["shape"].split()[-1].split(","))
    rows = []
    for faster, slower, *ratios in WANTED if result["what"] == "step" else []:
        if faster not in times or slower not in times:
            continue
        aim = dict(zip(WANTED_AT, ratios)).get(tokens)
        best, middle = (f(times[slower]) / f(times[faster]) for f in (min, statistics.median))
        rows.append(f"| {faster} against {slower}, {tokens} tokens | {best:.2f} | {middle:.2f} | {aim or ''} |")
    return rows


def matmul_gflops(dtype: torch.dtype) -> float:
    """The best of a few square products in PyTorch: the rate of its library, not the processor's peak."""
    a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    torch.matmul(a, b)
    best = min(seconds(lambda: torch.matmul(a, b)) for _ in range(4))
    return 2 * MATMUL_SIZE**3 / best / 1e9


def describe_machine(threads: int) -> dict:
    described = {"cpu": platform.processor() or platform.machine(), "threads": threads, "python": platform.python_version()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {}
        for key, _, value in pairs:
            fields.setdefault(key.strip(), value.strip())
        described["cpu"] = fields.get("model name", described["cpu"])
        described["family"] = f"{fields.get('vendor_id')} family {fields.get('cpu family')} model {fields.get('model')}"
        flags = set(fields.get("flags", "").split())
        wanted = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"]
        described["instructions"] = [flag for flag in wanted if flag in flags]
    described["onednn"] = torch.backends.mkldnn.is_available()
    for package in ("torch", "diffusers", "transformers"):
        described[package] = version(package)
    return described


def markdown(machine: dict, peaks: dict[str, float], results: list[dict]) -> str:
    about = ", ".join(f"{key} {' '.join(v) if isinstance(v, list) else v}" for key, v in machine.items())
    products = ", ".join(f"{dtype} {gflops:.0f}" for dtype, gflops in peaks.items()) or "not timed"
    lines = [
        about,
        "",
        f"PyTorch {MATMUL_SIZE}x{MATMUL_SIZE} products, GFLOP/s: {products}",
        "",
        "| work | runner | runs | min s | median s | GFLOP/s | PyTorch / Rushes (min) | (median) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for dtype, times in result["torch"].items():
            lines.append(row(result, f"torch {dtype}", times))
        for precision, rushes in result.get("ours", {}).items():
            for dtype, times in result["torch"].items():
                lines.append(row(result, f"Rushes {precision}, compared with PyTorch {dtype}", rushes, times))
            first = result.get("ours_first_frame", {}).get(precision)
            for dtype, times in result["torch"].items() if first else []:
                name = f"Rushes {precision}, first frame, compared with the whole decode of PyTorch {dtype}"
                lines.append(row(result, name, first, times, is_whole=False))
        if "peaks" in result:
            best = {name: max(peak[name] or 0 for peak in result["peaks"]) for name in result["peaks"][0]}
            peaks = ", ".join(f"{name} {value:.0f}" for name, value in best.items())
            lines.append(f"| {' | '.join([result['shape'], f'peaks: {peaks}', *[''] * 6])} |")
        if result["torch_cpu_share"] < QUIET_SHARE:
            note = f"PyTorch had {result['torch_cpu_share']:.0%} of its threads' time: the machine was busy"
            lines.append(f"| {' | '.join([result['shape'], note, *[''] * 6])} |")
    if rows := [row for result in results for row in wanted(result)]:
        lines += ["", "| how many times as fast | (min) | (median) | target |", "|---|---|---|---|", *rows]
    return "\n".join(lines)


def row(result: dict, runner: str, times: list[float], other: list[float] | None = None, is_whole: bool = True) -> str:
    """A row of the table; the ratio columns divide the times of `other` by `times`."""
    best, middle = min(times), statistics.median(times)
    rate = f"{result['gflop'] / best:.0f}" if result["gflop"] and is_whole else ""
    ratios = ["", ""]
    if other:
        pairs = [(best, min(other)), (middle, statistics.median(other))]
        ratios = [f"{b / a:.2f}" for a, b in pairs]
    cells = [result["shape"], runner, str(len(times)), f"{best:.3f}", f"{middle:.3f}", rate, *ratios]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
