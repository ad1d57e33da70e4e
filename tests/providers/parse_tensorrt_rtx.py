#!/usr/bin/env python3
"""Parses ONNX graphs with the parser of TensorRT for RTX, and builds engines with --build. Needs no GPU.

    parse_tensorrt_rtx.py --python FOLDER [--build] [--size SYMBOL=NUMBER ...] GRAPH.onnx ...

FOLDER holds the packages `tensorrt_rtx_bindings` and `tensorrt_rtx_libs`. Prints one line for each graph, and exits
with 1 if the parser or the builder says anything about one, and with 3 if the packages cannot be loaded. Extents that are not fixed get the values of --size, or
those of SIZES. Engines are built for SM 8.9 and SM 12.0, one after the other, and are not kept.
"""

import argparse
import ctypes
import math
import re
import sys
import time
from pathlib import Path

# The parser needs the builder's symbols, so the order matters.
LIBRARIES = ["libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"]
CANNOT_LOAD = 3
# Said about every input of integers, and about every quantised convolution with scales in bf16: it takes them in f32.
EXPECTED = re.compile(
    r"Make sure input \w+ has Int64 binding|Converting conv (activation|weight) scales to fp32"
)
# Extents of the inputs of steps, text encoders and decoders.
SIZES = {"B": 2, "frames": 2, "rows": 4, "columns": 6, "R": 1, "M": 1, "S": 16, "T": 16, "h": 8, "w": 8}


def main() -> None:
    arguments = parse_arguments()
    try:
        trt = load(arguments.python)
    except (ImportError, OSError) as error:
        print(f"TensorRT for RTX cannot be loaded: {error}", file=sys.stderr)
        sys.exit(CANNOT_LOAD)
    sizes = SIZES | dict(arguments.size)
    failed = 0
    for graph in arguments.graphs:
        began = time.monotonic()
        try:
            what = check(trt, graph, sizes, arguments.build)
            print(f"ok {graph}: {what}, {time.monotonic() - began:.1f} s", flush=True)
        except Refused as refused:
            failed += 1
            print(f"refused {graph}: {refused}", flush=True)
    if failed:
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="folder of the packages of TensorRT for RTX")
    parser.add_argument("--build", action="store_true", help="also build engines for SM 8.9 and SM 12.0")
    parser.add_argument("--size", type=size, action="append", default=[], metavar="SYMBOL=NUMBER")
    parser.add_argument("graphs", type=Path, nargs="+", metavar="GRAPH.onnx")
    return parser.parse_args()


def size(text: str) -> tuple[str, int]:
    symbol, _, number = text.partition("=")
    if not symbol or not number.isdigit() or number == "0":
        raise argparse.ArgumentTypeError(f"`{text}` is not SYMBOL=NUMBER")
    return symbol, int(number)


def load(folder: Path):
    """Loads the libraries by path, since the bindings find them in system folders only, and then the bindings."""
    for library in LIBRARIES:
        ctypes.CDLL(str(folder / "tensorrt_rtx_libs" / library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


class Refused(Exception):
    """What the parser or the builder says about a graph."""


def check(trt, path: Path, sizes: dict[str, int], builds: bool) -> str:
    log = messages(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # From the file, so that weights are found beside it.
    parsed = parser.parse_from_file(str(path))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if errors:
        raise Refused("; ".join(f"{error.node_name()}: {one_line(error.desc())}" for error in errors))
    if not parsed or log.lines:
        raise Refused("; ".join(log.lines) or "the parser gives no reason")
    what = f"{network.num_layers} layers"
    if not builds:
        return what
    for name in ["SM89", "SM120"]:
        engine = build(trt, builder, network, sizes, getattr(trt.ComputeCapability, name))
        if engine is None or log.lines:
            raise Refused(f"{name}: " + ("; ".join(log.lines) or "the builder gives no reason"))
        what += f", {name} {engine.nbytes / 1e6:.1f} MB"
    return what


def build(trt, builder, network, sizes: dict[str, int], capability):
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [
            extent if extent >= 0 else value(tensor.get_dimension_name(axis), sizes)
            for axis, extent in enumerate(tensor.shape)
        ]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def value(extent: str, sizes: dict[str, int]) -> int:
    """The value of an extent such as `2*rows`: a product of numbers and symbols."""
    factors = extent.split("*")
    unknown = [factor for factor in factors if not factor.isdigit() and factor not in sizes]
    if unknown:
        raise Refused(f"the extent `{extent}` has no value; give one with --size {unknown[0]}=NUMBER")
    return math.prod(int(factor) if factor.isdigit() else sizes[factor] for factor in factors)


def messages(trt):
    """A logger that keeps warnings and errors."""

    class Messages(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.lines = []

        def log(self, severity, text):
            line = one_line(text)
            if severity <= trt.ILogger.WARNING and not EXPECTED.search(line):
                self.lines.append(line)

    return Messages()


def one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
