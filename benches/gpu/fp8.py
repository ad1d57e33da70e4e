#!/usr/bin/env python3
"""Compares one product by every route to E4M3 that ONNX Runtime has without TensorRT with bf16.

    fp8.py [--tiny]        prints a line of JSON; --tiny is small, and on the CPU

The operators are documented only by their schemas, so the error message of a failing route is reported.
"""

import argparse
import json

try:
    import numpy as np
    import onnxruntime
    import torch
    from onnx import TensorProto, helper

    import checkpoint
    import graphs
except ImportError as error:
    raise SystemExit(f"the routes are not compared: {error.name} is not installed for this Python") from None

E4M3_MAX = 448.0
BLOCK = 128


def routes(place, sizes) -> list[dict]:
    """`[M,K]` times `[N,K]` transposed, at the shape of the first feed-forward product of a 480p clip of 81 frames."""
    d = sizes.heads * sizes.head_dim
    m, k, n = (64, 256, 128) if place.is_cpu else (32_760, d, sizes.ffn)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(m, k, generator=generator)
    weight = torch.randn(n, k, generator=generator) * k**-0.5
    exact = x.to(place.device) @ weight.to(place.device).T
    baseline = None
    results = []
    for name, build in [
        ("bf16, Gemm", bf16),
        ("GemmFloat8, static scales", gemm_float8),
        ("MatMulBlockQuantizedFp8Weight, weights only", block_quantized),
        ("MatMulBlockQuantizedFp8Weight, static activations", block_quantized_static),
        ("DequantizeLinear, MatMul", dequantized),
    ]:
        try:
            output, seconds = measure(build(x, weight), x, place)
        except Exception as error:  # noqa: BLE001
            results.append({"route": name, "fails": " ".join(str(error).split())[:160]})
            continue
        baseline = baseline or seconds
        error = graphs.relative_error(output, exact)
        results.append({"route": name, "seconds": seconds, "times bf16": baseline / seconds, "relative error": error})
    return results


def measure(model, x: torch.Tensor, place):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=place.providers)
    return graphs.run(session, {"x": x}, "y", place)


def quantized_bytes(values: torch.Tensor, scale: torch.Tensor) -> bytes:
    return (values / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()


def model_of(nodes, initializers, m: int, k: int, n: int):
    """A model with input `x` and output `y` in f32; the values between them are bf16 or narrower."""
    cast_in = helper.make_node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16)
    cast_out = helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [cast_in, *nodes, cast_out],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def raw(name: str, kind: int, shape, data: bytes):
    return helper.make_tensor(name, kind, shape, data, raw=True)


def f32(name: str, values) -> object:
    values = np.asarray(values, dtype=np.float32)
    return raw(name, TensorProto.FLOAT, values.shape, values.tobytes())


def bf16_tensor(name: str, values: torch.Tensor):
    narrowed = values.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return raw(name, TensorProto.BFLOAT16, values.shape, narrowed.tobytes())


def fp8_tensor(name: str, values: torch.Tensor, scale: torch.Tensor):
    return raw(name, TensorProto.FLOAT8E4M3FN, values.shape, quantized_bytes(values, scale))


def quantize_x(x: torch.Tensor):
    scale = x.abs().max() / E4M3_MAX
    node = helper.make_node("QuantizeLinear", ["a", "x_scale", "x_zero"], ["x_quantized"])
    zero = raw("x_zero", TensorProto.FLOAT8E4M3FN, [], b"\0")
    return scale, node, [bf16_tensor("x_scale", scale), zero]


def bf16(x: torch.Tensor, weight: torch.Tensor):
    node = helper.make_node("Gemm", ["a", "w"], ["product"], transB=1)
    return model_of([node], [bf16_tensor("w", weight)], *x.shape, len(weight))


def gemm_float8(x: torch.Tensor, weight: torch.Tensor):
    x_scale, quantize, initializers = quantize_x(x)
    w_scale = weight.abs().max() / E4M3_MAX
    initializers += [fp8_tensor("w", weight, w_scale), f32("scale_a", [float(x_scale)]), f32("scale_b", [float(w_scale)])]
    product = helper.make_node(
        "GemmFloat8",
        ["x_quantized", "w", "", "scale_a", "scale_b"],
        ["product"],
        domain="com.microsoft",
        transA=0,
        transB=1,
        dtype=TensorProto.BFLOAT16,
    )
    return model_of([quantize, product], initializers, *x.shape, len(weight))


def block_scales(weight: torch.Tensor):
    rows, k = weight.shape
    blocks = weight.reshape(rows, k // BLOCK, BLOCK)
    scales = blocks.abs().amax(2) / E4M3_MAX
    return scales, scales.repeat_interleave(BLOCK, 1)


def block_quantized(x: torch.Tensor, weight: torch.Tensor, static: bool = False):
    scales, spread = block_scales(weight)
    inputs = ["a", "w", "w_scale"]
    initializers = [fp8_tensor("w", weight, spread), f32("w_scale", scales.numpy())]
    if static:
        inputs.append("a_scale")
        initializers.append(f32("a_scale", float(x.abs().max() / E4M3_MAX)))
    product = helper.make_node(
        "MatMulBlockQuantizedFp8Weight", inputs, ["product"], domain="com.microsoft", block_size=BLOCK
    )
    return model_of([product], initializers, *x.shape, len(weight))


def block_quantized_static(x: torch.Tensor, weight: torch.Tensor):
    return block_quantized(x, weight, static=True)


def dequantized(x: torch.Tensor, weight: torch.Tensor):
    """A graph with quantise and dequantise nodes, as it runs without TensorRT: stored in E4M3, computed in bf16."""
    x_scale, quantize, initializers = quantize_x(x)
    w_scale = weight.abs().max() / E4M3_MAX
    stored = weight.T.contiguous()
    initializers += [fp8_tensor("w", stored, w_scale), bf16_tensor("w_scale", w_scale)]
    nodes = [
        quantize,
        helper.make_node("DequantizeLinear", ["x_quantized", "x_scale"], ["x_values"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["w_values"]),
        helper.make_node("MatMul", ["x_values", "w_values"], ["product"]),
    ]
    return model_of(nodes, initializers, *x.shape, len(weight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    is_tiny = parser.parse_args().tiny
    if not is_tiny and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no GPU")
    place, sizes = (graphs.Place.cpu(), checkpoint.TINY) if is_tiny else (graphs.Place.gpu(), checkpoint.A14B)
    print(json.dumps({"routes": routes(place, sizes)}))


if __name__ == "__main__":
    main()
