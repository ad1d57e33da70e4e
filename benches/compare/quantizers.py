#!/usr/bin/env python3
"""Others' INT8 quantisers on our f32 step graph, beside ours: the same calibration data, the same judgement.

    quantizers.py BUNDLE [--expert NAME] [--samples N] [--threads N] [--json FILE]

BUNDLE has been through `rushes calibrate --keep` and `rushes quantize --scheme int8`. Its recorded clips but the last
calibrate `onnxruntime.quantization.quantize_static` and `nvidia-modelopt`; on the last one, which no peer has seen, every
graph's velocity is compared with the f32 graph's. (Ours was calibrated on all of them, by statistics alone; record one
clip more with another prompt and move it in as the last for a strict comparison.)

Error: |velocity - f32| / |f32|, over all steps of the clip. Integer share: multiply-adds of linear layers in integers, read
from the graph as ONNX Runtime has optimised it. Errors are compared where the shares are alike.
"""

import argparse
import json
import os
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
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

# Operators of the optimised graph that multiply by a weight: which input it is, and whether they do so in integers.
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
    ours = {graph["precision"]: bundle / graph["file"] for graph in entry["graphs"] if graph["dialect"] == "cpu"}
    samples = [load_file(path) for path in sorted((bundle / "calibration").glob("sample-*.safetensors"))]
    routes = manifest["routing"]
    calibration = [given for sample in samples[: arguments.samples] for given in feeds(sample, routes, name)]
    held_out = feeds(samples[-1], routes, name)
    print(f"{name}: {len(calibration)} calibrating steps, {len(held_out)} judged", file=sys.stderr)

    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        folder = Path(folder)
        plain = folder / "plain.onnx"
        simplify(ours["f32"], plain, held_out[0])
        graphs = {"ours, f32": ours["f32"], "the form that the peers get, f32": plain, "ours, int8": ours.get("int8")}
        makers = {"onnxruntime quantize_static": static, "nvidia-modelopt int8": modelopt}
        failures = {}
        for label, make in makers.items():
            target = folder / f"{make.__name__}.onnx"
            try:
                make(plain, target, calibration)
                graphs[label] = target
            except Exception as error:  # noqa: BLE001
                failures[label] = " ".join(str(error).split())[:300]
        rows = judge(graphs, held_out, folder, arguments.threads)
    for label, why in failures.items():
        rows.append({"graph": label, "fails": why})
    print(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--expert", help="which expert; the one for low noise without it")
    parser.add_argument("--samples", type=int, default=-1, help="recorded clips that calibrate; all but the last")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def feeds(sample: dict, routes: list, name: str) -> list[dict]:
    """The inputs of every step of a recorded clip that the expert runs, with the prompt's text."""
    result = []
    for latent, timestep in zip(sample["latents"], sample["timesteps"]):
        if next(route["expert"] for route in routes if timestep >= route["from_timestep"]) != name:
            continue
        result.append({
            "latent": latent[None],
            "timestep": np.array([timestep], np.float32),
            "text": sample["text.0"][None],
            "cos": sample["cos"],
            "sin": sample["sin"],
        })
    return result


def simplify(source: Path, target: Path, given: dict) -> None:
    """Our graph in the form that the tools know: weights inside, `Gemm(transB=1)` on flat rows as `MatMul` and `Add`,
    weights that are widened on the way stored as f32. Nothing that it computes changes."""
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in weights:
            values = numpy_helper.to_array(weights[node.input[0]]).astype(np.float32)
            weights[node.output[0]] = numpy_helper.from_array(values, node.output[0])
        elif node.op_type == "Gemm" and node.input[1] in weights:
            weight = numpy_helper.to_array(weights[node.input[1]])
            stored = f"{node.input[1]}.transposed"
            weights[stored] = numpy_helper.from_array(np.ascontiguousarray(weight.T), stored)
            product = f"{node.output[0]}.product" if len(node.input) > 2 else node.output[0]
            nodes.append(helper.make_node("MatMul", [node.input[0], stored], [product], name=node.name))
            if len(node.input) > 2:
                nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias"))
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)
    # One shape, because a tool that takes calibration data in one array has to know where a sample ends.
    for value in graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, given[value.name].shape):
            dimension.Clear()
            dimension.dim_value = size
    onnx.save(model, target)


def left_alone(source: Path) -> list[str]:
    """What we leave in f32 too: products on a single row, which steer everything and cost nothing, and the head."""
    nodes = onnx.load(source, load_external_data=False).graph.node
    return [node.name for node in nodes if node.op_type == "MatMul" and node.name.startswith(("time", "head"))]


class Reader(CalibrationDataReader):
    def __init__(self, given: list[dict]):
        self.left = iter(given)

    def get_next(self):
        return next(self.left, None)


def static(source: Path, target: Path, calibration: list[dict]) -> None:
    """Unsigned activations, signed weights with a scale for each output, as the CPU's kernels like it."""
    quantize_static(
        source,
        target,
        Reader(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=left_alone(source),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Types are not inferred past operators of ONNX Runtime's own, and what has no type is skipped.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def modelopt(source: Path, target: Path, calibration: list[dict]) -> None:
    from modelopt.onnx.quantization import quantize

    together = {name: np.concatenate([given[name] for given in calibration]) for name in ("latent", "timestep", "text")}
    for name in ("cos", "sin"):
        together[name] = np.concatenate([given[name] for given in calibration])
    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data=together,
        calibration_method="max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=left_alone(source),
        output_path=str(target),
    )


def judge(graphs: dict, held_out: list[dict], folder: Path, threads: int) -> list[dict]:
    expected, rows = None, []
    for label, path in graphs.items():
        if path is None:
            continue
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        optimised = folder / "optimised.onnx"
        options.optimized_model_filepath = str(optimised)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = np.stack([session.run(["velocity"], given)[0] for given in held_out])
        best = float("inf")
        for _ in range(RUNS):
            began = time.perf_counter()
            session.run(["velocity"], held_out[0])
            best = min(best, time.perf_counter() - began)
        expected = found if expected is None else expected
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        tokens = held_out[0]["cos"].shape[0]
        rows.append({"graph": label, "error": error, "share": share(optimised, tokens), "seconds": best})
        for left in folder.glob("optimised*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return rows


def share(path: Path, tokens: int) -> float:
    """Multiply-adds in integers, of those of linear layers on the tokens and on the text."""
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    integer = total = 0
    for node in graph.node:
        place, is_integer = PRODUCTS.get(node.op_type, (None, False))
        if place is None or node.input[place] not in sizes:
            continue
        size = int(np.prod(sizes[node.input[place]]))
        name = f"{node.name} {node.input[place]}"
        if "time" in name:
            continue
        is_text = "text" in name or ("attn2" in name and ("to_k" in name or "to_v" in name))
        work = size * (512 if is_text else tokens)
        total += work
        integer += work if is_integer else 0
    return integer / total if total else 0.0


def markdown(rows: list[dict]) -> str:
    lines = ["| graph | relative error | integer share | ms | times f32 |", "|---|---|---|---|---|"]
    baseline = rows[0]["seconds"]
    for row in rows:
        if "fails" in row:
            lines.append(f"| {row['graph']} | fails: {row['fails']} | | | |")
            continue
        cells = [f"{100 * row['error']:.2f} %", f"{100 * row['share']:.1f} %", f"{1e3 * row['seconds']:.1f}"]
        lines.append(f"| {row['graph']} | {' | '.join(cells)} | {baseline / row['seconds']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
