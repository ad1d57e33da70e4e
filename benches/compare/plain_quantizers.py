#!/usr/bin/env python3
"""Compares `nvidia-modelopt` with `rushes quantize --target plain`: INT8 and FP8 graphs for TensorRT, computed by ONNX
Runtime's CPU provider.

    plain_quantizers.py BUNDLE [--held-out FILE] [--methods NAMES] [--threads N] [--json FILE]

Prepare BUNDLE with

    rushes export CHECKPOINT --out BUNDLE --target cpu --target plain --weights f32
    rushes calibrate BUNDLE --prompts FILE --keep
    rushes quantize BUNDLE --scheme int8 --target plain
    rushes quantize BUNDLE --scheme fp8 --target cpu,plain

The recorded clips also calibrate modelopt. It quantises the same layers of the same plain f32 graph, with its methods
for ranges. The velocity of every graph is compared with that of the f32 graph, per expert and noise bin, on the clip of
`--held-out` (`calibration/sample-*.safetensors` of another folder), or on the last recorded clip, which is then not used
to calibrate modelopt.

The QDQ fusions of ONNX Runtime are off, so quantised values are exact and products are in f32: what a graph loses is
what its scales lose. With `onnxruntime-openvino` instead of `onnxruntime`, which also computes on processors of AMD, the
INT8 graphs of Rushes are also computed by OpenVINO, in 8 bits.

Error: |velocity - f32| / |f32| over the steps of the clip in the bin.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from quantizers import Reader, distance, feeds, simplify  # noqa: E402

CPU, OPENVINO = "CPUExecutionProvider", "OpenVINOExecutionProvider"
NOISE = ["least noise", "middle", "most noise"]


def main() -> None:
    arguments = parse()
    bundle = arguments.bundle
    manifest = json.loads((bundle / "bundle.json").read_text())
    routes = manifest["routing"]
    clips = sorted((bundle / "calibration").glob("sample-*.safetensors"))
    held_out = load_file(arguments.held_out or clips.pop())
    samples = [load_file(clip) for clip in clips]
    rows, failures = [], {}
    for entry in manifest["components"]:
        if "expert" not in str(entry["component"]):
            continue
        name = entry["component"]["expert"]
        calibration = [given for sample in samples for given in feeds(sample, routes, name)]
        compared = feeds(held_out, routes, name)
        print(f"{name}: {len(calibration)} calibration steps, {len(compared)} compared steps", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
            folder = Path(folder)
            rows += compare(bundle, entry, (calibration, compared), routes, folder, arguments, failures)
    print(markdown(rows, failures))
    others = [*encoders(bundle, manifest, arguments.threads), *decoders(bundle, manifest, held_out, arguments.threads)]
    print("\n".join(["\n| | computed by | figure |", "|---|---|---|", *others]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "failures": failures}, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="a recorded clip that was not used to calibrate")
    parser.add_argument("--methods", default="max,entropy", help="methods of modelopt for INT8 [max,entropy]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def compare(bundle, entry, clips, routes, folder, arguments, failures) -> list[dict]:
    name = entry["component"]["expert"]
    calibration, compared = clips
    plain = {graph["precision"]: bundle / graph["file"] for graph in entry["graphs"] if graph["target"] == "plain"}
    simple = folder / "plain.onnx"
    simplify(plain["f32"], simple, compared[0])
    graphs = {("f32", "f32"): plain["f32"], ("f32", "f32, in the form for modelopt"): simple}
    for scheme, file in [("int8", "quantization.int8-plain.json"), ("fp8", "quantization.fp8.json")]:
        if scheme not in plain:
            continue
        graphs[scheme, "Rushes"] = plain[scheme]
        nodes = quantized_nodes(bundle / file, name, simple)
        methods = arguments.methods.split(",") if scheme == "int8" else ["max"]
        for method in methods:
            label = f"`nvidia-modelopt`, {method}"
            target = folder / f"{scheme}-{method}.onnx"
            try:
                modelopt(simple, target, calibration, nodes, scheme, method)
                graphs[scheme, label] = target
            except Exception as error:  # noqa: BLE001
                failures[f"{label}, {scheme}, {name}"] = " ".join(str(error).split())[:300]
    expected, rows = None, []
    bins = [noise_bin(routes, float(given["timestep"][0])) for given in compared]
    runs = [(scheme, label, path, CPU) for (scheme, label), path in graphs.items()]
    if OPENVINO in onnxruntime.get_available_providers():
        runs += [(scheme, f"{label}, on OpenVINO", path, OPENVINO) for (scheme, label), path in graphs.items()]
    for scheme, label, path, provider in runs:
        # That version of OpenVINO takes E4M3 in parts only.
        if provider == OPENVINO and (scheme == "fp8" or label.startswith(("`", "f32, in"))):
            continue
        open_graph = session(path, arguments.threads, provider)
        found = [open_graph.run(["velocity"], given)[0] for given in compared]
        expected = expected or found
        for noise in sorted(set(bins), reverse=True):
            of_bin = [index for index, other in enumerate(bins) if other == noise]
            error = distance(np.stack([found[i] for i in of_bin]), np.stack([expected[i] for i in of_bin]))
            rows.append({"scheme": scheme, "graph": label, "expert": name, "noise": noise, "error": error})
    return rows


def plain_graphs(bundle: Path, manifest: dict, component: str, part: str) -> dict:
    """The plain graphs of a part by precision."""
    entry = next(entry for entry in manifest["components"] if entry["component"] == component)
    graphs = [graph for graph in entry["graphs"] if graph["target"] == "plain" and graph["part"] == part]
    return {graph["precision"]: bundle / graph["file"] for graph in graphs}


def providers(precision: str) -> list[str]:
    has_openvino = OPENVINO in onnxruntime.get_available_providers() and precision != "fp8"
    return [CPU, OPENVINO] if has_openvino else [CPU]


def encoders(bundle: Path, manifest: dict, threads: int):
    """The smallest cosine between the states of a token, over the prompts of the calibration."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    prompts = [prompt for prompt, _ in json.loads((bundle / "calibration.json").read_text())["set"]["samples"]]
    ids = [np.array([tokenizer.encode(prompt).ids], np.int64) for prompt in prompts]
    graphs = plain_graphs(bundle, manifest, "text_encoder", "whole")
    states = lambda graph: [graph.run(None, {"ids": given})[0][0] for given in ids]  # noqa: E731
    expected = states(session(graphs["f32"], threads, CPU))
    for precision, path in graphs.items():
        for provider in providers(precision):
            found = states(session(path, threads, provider))
            rows = [cosine(a, b) for x, y in zip(found, expected) for a, b in zip(x, y)]
            yield f"| text encoder, {precision} | {provider} | token cosine {min(rows):.5f} |"


def decoders(bundle: Path, manifest: dict, sample: dict, threads: int):
    """The PSNR of the frames of two latent frames, from the last latent of a clip."""
    latent = sample["latents"][-1]
    first, later = (plain_graphs(bundle, manifest, "decoder", part) for part in ("first", "next"))
    expected = frames(first["f32"], later["f32"], latent, threads, CPU)
    for precision in first:
        for provider in providers(precision):
            found = frames(first[precision], later[precision], latent, threads, provider)
            # Frames are in -1..1.
            error = float(np.mean(((found - expected) / 2) ** 2))
            decibels = -10 * np.log10(max(error, 1e-12))
            yield f"| decoder, {precision} | {provider} | {decibels:.1f} dB |"


def frames(first: Path, later: Path, latent: np.ndarray, threads: int, provider: str) -> np.ndarray:
    frame = lambda index: latent[None, :, index : index + 1]  # noqa: E731
    graph = session(first, threads, provider)
    names = [output.name for output in graph.get_outputs()]
    outputs = dict(zip(names, graph.run(names, {"latent": frame(0)})))
    made = [outputs["frames"]]
    caches = {name.removeprefix("next_"): value for name, value in outputs.items() if name.startswith("next_cache")}
    made.append(session(later, threads, provider).run(["frames"], {"latent": frame(1), **caches})[0])
    return np.concatenate(made)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def noise_bin(routes: list, timestep: float) -> int:
    """The third of the noise levels of its expert that a timestep is in, 0 for the least noise."""
    upper = 1000.0
    for route in routes:
        lower = route["from_timestep"]
        if timestep >= lower:
            return int(min(2, max(0, (timestep - lower) / ((upper - lower) / 3))))
        upper = lower
    return 0


def quantized_nodes(numerics: Path, name: str, source: Path) -> list[str]:
    """The products of the layers of this expert that `rushes quantize` quantises."""
    components = json.loads(numerics.read_text())["components"]
    layers = next(entry for entry in components if entry["component"] == {"expert": name})["layers"]
    nodes = onnx.load(source, load_external_data=False).graph.node
    is_of = lambda node, layer: node.input[1].startswith(f"{layer}.")  # noqa: E731
    found = [node.name for node in nodes if node.op_type == "MatMul" and any(is_of(node, layer) for layer in layers)]
    if len(found) != len(layers):
        raise SystemExit(f"{len(found)} products were found of {len(layers)} layers")
    return found


def modelopt(source: Path, target: Path, calibration: list[dict], nodes: list[str], scheme: str, method: str) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode=scheme,
        calibration_data_reader=Reader(calibration),
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=[f"^{re.escape(node)}$" for node in nodes],
        output_path=str(target),
        log_level="ERROR",
    )


def session(path: Path, threads: int, provider: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if provider == CPU:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return onnxruntime.InferenceSession(str(path), options, providers=[CPU])
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"device_type": "CPU", "precision": "FP32", "num_of_threads": str(threads)}
    found = onnxruntime.InferenceSession(str(path), options, providers=[(provider, settings)])
    if provider not in found.get_providers():
        raise SystemExit(f"{path} was not opened on {provider}")
    return found


def markdown(rows: list[dict], failures: dict) -> str:
    columns = list(dict.fromkeys((row["expert"], row["noise"]) for row in rows))
    heads = [f"{expert}, {NOISE[noise]}" for expert, noise in columns]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for scheme, label in dict.fromkeys((row["scheme"], row["graph"]) for row in rows):
        errors = {(row["expert"], row["noise"]): row["error"] for row in rows if (row["scheme"], row["graph"]) == (scheme, label)}
        cells = [f"{100 * errors[column]:.2f} %" if column in errors else "–" for column in columns]
        lines.append(f"| {label if scheme == 'f32' else f'{scheme}, {label}'} | {' | '.join(cells)} |")
    lines += [f"\n{label} fails: {why}" for label, why in failures.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
