#!/usr/bin/env python3
"""Compares other INT8 quantisers with `rushes quantize` on the same f32 step graph, nodes and calibration data.

    quantizers.py BUNDLE [--held-out FILE] [--expert NAME] [--peers NAMES] [--threads N] [--json FILE]

Prepare BUNDLE with `rushes calibrate --keep` and `rushes quantize --scheme int8 --kernels rushes,onnxruntime`. Its
recorded clips also calibrate `onnxruntime.quantization.quantize_static` and `nvidia-modelopt`. The velocity of every
graph is compared with that of the f32 graph, on the clip of `--held-out` (`calibration/sample-*.safetensors` of another
folder), or on the last recorded clip, which is then not used to calibrate.

The other quantisers quantise the same layers, with a weight scale per output. `quantize_static` runs with its defaults,
which also round the outputs of products, and with only inputs and weights rounded, with each of its range methods;
modelopt runs with both of its methods.

Error: |velocity - f32| / |f32|, over all steps of the clip, and the same of what the blocks add to the residual stream
(the last block's output minus the first one's input). Integer share: multiply-adds of linear layers in integers, read
from the graph after ONNX Runtime's optimisation, without MatMulAddFusion, which would compute them in f32 in peers'
graphs.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from onnxruntime.quantization import (  # noqa: E402
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from safetensors.numpy import load_file  # noqa: E402

# Operators of the optimised graph that multiply by a weight: the index of that input, and whether they use integers.
PRODUCTS = {
    "MatMulIntegerToFloat": (1, True),
    "MatMulInteger": (1, True),
    "DynamicQuantizeMatMul": (1, True),
    "QLinearMatMul": (3, True),
    "QGemm": (3, True),
    "Gemm": (1, False),
    "MatMul": (1, False),
    "FusedMatMul": (1, False),
    "FusedGemm": (1, False),
    "MatMulNBits": (1, False),
}
RUNS = 3


def main() -> None:
    arguments = parse()
    bundle = arguments.bundle
    manifest = json.loads((bundle / "bundle.json").read_text())
    experts = [entry for entry in manifest["components"] if "expert" in str(entry["component"])]
    name = arguments.expert or experts[-1]["component"]["expert"]
    entry = next(entry for entry in experts if entry["component"]["expert"] == name)
    rushes_graphs = {
        graph["precision"]: bundle / graph["file"]
        for graph in entry["graphs"]
        if graph["target"] == "cpu" and graph.get("kernels", "onnxruntime") == "onnxruntime"
    }
    routes = manifest["routing"]
    clips = sorted((bundle / "calibration").glob("sample-*.safetensors"))
    held_out_clip = arguments.held_out or clips.pop()
    calibration = [given for clip in clips for given in feeds(load_file(clip), routes, name)]
    held_out = feeds(load_file(held_out_clip), routes, name)
    print(f"{name}: {len(calibration)} calibration steps, {len(held_out)} compared steps", file=sys.stderr)

    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        folder = Path(folder)
        plain = folder / "plain.onnx"
        simplify(rushes_graphs["f32"], plain, held_out[0])
        nodes = quantized_nodes(bundle, name, plain)
        graphs = {
            "f32": rushes_graphs["f32"],
            "f32, in the form for peers": plain,
            "rushes, int8": rushes_graphs.get("int8"),
        }
        failures = {}
        for index, (label, make) in enumerate(peers().items()):
            if arguments.peers and not any(part in label for part in arguments.peers.split(",")):
                continue
            target = folder / f"peer-{index}.onnx"
            try:
                make(plain, target, calibration, nodes)
                graphs[label] = target
            except Exception as error:  # noqa: BLE001
                failures[label] = " ".join(str(error).split())[:300]
        rows = compare(graphs, held_out, folder, arguments.threads)
    for label, why in failures.items():
        rows.append({"graph": label, "fails": why})
    print(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="a recorded clip that was not used to calibrate")
    parser.add_argument("--expert", help="name of the expert [default: the one for low noise]")
    parser.add_argument("--peers", metavar="NAMES", help="only peers with one of these in their names")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def peers() -> dict:
    """The function of each peer that writes its graph: `make(plain, target, calibration, nodes)`."""
    methods = CalibrationMethod
    return {
        "quantize_static, defaults": lambda *given: static(*given, methods.MinMax, rounds_outputs=True),
        "quantize_static, minmax": lambda *given: static(*given, methods.MinMax),
        "quantize_static, percentile": lambda *given: static(*given, methods.Percentile),
        "quantize_static, entropy": lambda *given: static(*given, methods.Entropy),
        "modelopt, max": lambda *given: modelopt(*given, "max"),
        "modelopt, entropy": lambda *given: modelopt(*given, "entropy"),
    }


def feeds(sample: dict, routes: list, name: str) -> list[dict]:
    """The inputs of every step of a recorded clip that is routed to the expert, with the prompt's text."""
    result = []
    for latent, timestep in zip(sample["latents"], sample["timesteps"]):
        if next(route["expert"] for route in routes if timestep >= route["from_timestep"]) != name:
            continue
        result.append({
            "latent": latent[None],
            "timestep": np.array([timestep], np.float32),
            "rows": np.zeros(1, np.int64),
            "text": sample["text.0"][None],
            "cos": sample["cos"],
            "sin": sample["sin"],
        })
    return result


def simplify(source: Path, target: Path, given: dict) -> None:
    """Writes the graph in a form that the tools support: weights inside, `Gemm(transB=1)` on flat rows as `MatMul` and
    `Add`, and weights that the graph widens stored as f32. The results are the same."""
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes, stored_as = [], {}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in weights:
            stored_as[node.output[0]] = node.input[0]
            values = numpy_helper.to_array(weights[node.input[0]]).astype(np.float32)
            weights[node.output[0]] = numpy_helper.from_array(values, node.output[0])
        elif node.op_type == "Gemm" and node.input[1] in weights:
            weight = numpy_helper.to_array(weights[node.input[1]])
            stored = f"{stored_as.get(node.input[1], node.input[1])}.transposed"
            weights[stored] = numpy_helper.from_array(np.ascontiguousarray(weight.T), stored)
            product = f"{node.output[0]}.product" if len(node.input) > 2 else node.output[0]
            nodes.append(helper.make_node("MatMul", [node.input[0], stored], [product], name=node.name))
            if len(node.input) > 2:
                nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias"))
        else:
            nodes.append(node)
    # Shape inference stops at operators of ONNX Runtime's domain, and values without a type are not quantised.
    for node in nodes:
        if node.op_type == "MultiHeadAttention":
            graph.value_info.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    used = {name for node in nodes for name in node.input}
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)
    # Fixed shapes, because a tool that takes all calibration data in one array must know the size of a sample.
    for value in graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, given[value.name].shape):
            dimension.Clear()
            dimension.dim_value = size
    onnx.save(model, target)


def quantized_nodes(bundle: Path, name: str, source: Path) -> list[str]:
    """The products of the layers of this expert that `rushes quantize` quantises."""
    numerics = json.loads((bundle / "quantization.int8.json").read_text())
    component = next(entry for entry in numerics["components"] if entry["component"] == {"expert": name})
    nodes = onnx.load(source, load_external_data=False).graph.node
    found = []
    for node in nodes:
        if node.op_type == "MatMul" and any(node.input[1].startswith(f"{layer}.") for layer in component["layers"]):
            node_name = node.name or node.output[0]
            found.append(node_name)
    if len(found) != len(component["layers"]):
        raise SystemExit(f"{len(found)} products were found of {len(component['layers'])} layers")
    return found


class Reader(CalibrationDataReader):
    """Returns the steps one after the other; modelopt also reads the first one and rewinds."""

    def __init__(self, given: list[dict]):
        self.given = given
        self.rewind()

    def get_next(self):
        return next(self.remaining, None)

    def get_first(self):
        return self.given[0]

    def rewind(self):
        self.remaining = iter(self.given)


def static(source: Path, target: Path, calibration: list[dict], nodes: list[str], method, rounds_outputs=False) -> None:
    """Unsigned activations and signed weights with a scale per output, as the CPU kernels expect."""
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    if not rounds_outputs:
        options["OpTypesToExcludeOutputQuantization"] = ["MatMul"]
    quantize_static(
        source,
        target,
        Reader(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=nodes,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
        extra_options=options,
    )


def modelopt(source: Path, target: Path, calibration: list[dict], nodes: list[str], method: str) -> None:
    """Symmetric signed activations, as TensorRT requires; slow on a CPU."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data_reader=Reader(calibration),
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=[f"^{re.escape(node)}$" for node in nodes],
        output_path=str(target),
        log_level="ERROR",
    )


def with_stream(source: Path, target: Path) -> None:
    """Writes the graph with the residual stream before the first block and after the last block as outputs."""
    model = onnx.load(source, load_external_data=False)
    nodes = {node.name: node for node in model.graph.node}
    for output, node in [("before", "block.0/LayerNormalization"), ("after", "head/LayerNormalization")]:
        model.graph.node.append(helper.make_node("Identity", [nodes[node].input[0]], [output], name=output))
        model.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    # In the folder of the graph, because the paths of its weights are relative.
    onnx.save(model, target)


def compare(graphs: dict, held_out: list[dict], folder: Path, threads: int) -> list[dict]:
    expected, rows = None, []
    for label, path in graphs.items():
        if path is None:
            continue
        stream = path.with_name(f"{path.name}.stream.onnx")
        with_stream(path, stream)
        try:
            found = outputs_of(session(stream, threads), held_out)
        finally:
            stream.unlink()
        optimised = folder / "optimised.onnx"
        timed = session(path, threads, optimised)
        best = float("inf")
        for _ in range(RUNS):
            began = time.perf_counter()
            timed.run(["velocity"], held_out[0])
            best = min(best, time.perf_counter() - began)
        expected = expected or found
        errors = {what: distance(found[what], expected[what]) for what in found}
        tokens = held_out[0]["cos"].shape[0]
        rows.append({"graph": label, **errors, "share": share(optimised, tokens), "seconds": best})
        for path in folder.glob("optimised*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return rows


def session(path: Path, threads: int, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if optimised:
        options.optimized_model_filepath = str(optimised)
    without = ["MatMulAddFusion"]
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=without)


def outputs_of(graph: onnxruntime.InferenceSession, held_out: list[dict]) -> dict:
    """The velocities of all steps, and what the blocks add to the residual stream."""
    steps = [graph.run(["velocity", "before", "after"], given) for given in held_out]
    return {
        "velocity": np.stack([step[0] for step in steps]),
        "blocks": np.stack([step[2] - step[1] for step in steps]),
    }


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def share(path: Path, tokens: int) -> float:
    """The share of multiply-adds in integers, of all linear layers on the tokens and on the text."""
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    integer = total = 0
    for node in graph.node:
        index, is_integer = PRODUCTS.get(node.op_type, (None, False))
        if index is None or node.input[index] not in sizes:
            continue
        size = int(np.prod(sizes[node.input[index]]))
        name = f"{node.name} {node.input[index]}"
        if "time" in name:
            continue
        is_text = "text" in name or ("attn2" in name and ("to_k" in name or "to_v" in name))
        work = size * (512 if is_text else tokens)
        total += work
        integer += work if is_integer else 0
    return integer / total if total else 0.0


def markdown(rows: list[dict]) -> str:
    lines = [
        "| graph | error of the velocity | of what the blocks add | integer share | ms | times f32 |",
        "|---|---|---|---|---|---|",
    ]
    baseline = rows[0]["seconds"]
    for row in rows:
        if "fails" in row:
            lines.append(f"| {row['graph']} | fails: {row['fails']} | | | | |")
            continue
        cells = [f"{100 * row[what]:.2f} %" for what in ("velocity", "blocks")]
        cells += [f"{100 * row['share']:.1f} %", f"{1e3 * row['seconds']:.1f}"]
        lines.append(f"| {row['graph']} | {' | '.join(cells)} | {baseline / row['seconds']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
