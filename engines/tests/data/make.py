"""Writes the small graphs for the tests of `engines` into its own folder. Needs the package onnx.

Each is smaller than 2 kB. Large weights are external data in `weights.bin`, which the tests create as a sparse file.
"""

from pathlib import Path

from onnx import TensorProto, checker, helper, save

HERE = Path(__file__).parent
F32, I64 = TensorProto.FLOAT, TensorProto.INT64
# The formats of tensors that are neither f32 nor i64, by the names of inputs and outputs.
FORMATS = {
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "i8": TensorProto.INT8,
    "u8": TensorProto.UINT8,
    "f8e4m3": TensorProto.FLOAT8E4M3FN,
    "bool": TensorProto.BOOL,
}
# Wide enough for 200 MB of weights, and not aligned, as tensors in a safetensors file.
WIDE_SHAPE, WIDE_OFFSET = (5120, 10240), 73


def value(name, element, shape):
    return helper.make_tensor_value_info(name, element, shape)


def external(name, shape, offset):
    tensor = TensorProto(name=name, data_type=F32, dims=shape, data_location=TensorProto.EXTERNAL)
    length = 4
    for extent in shape:
        length *= extent
    for key, entry in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=entry)
    return tensor


def write(name, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 21)]
    has_own_operators = any(node.domain == "rushes" for node in nodes)
    if has_own_operators:
        opsets.append(helper.make_opsetid("rushes", 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    is_external = any(tensor.data_location == TensorProto.EXTERNAL for tensor in initializers)
    if not is_external and not has_own_operators:
        checker.check_model(model, full_check=True)
    path = HERE / f"{name}.onnx"
    save(model, path)
    assert path.stat().st_size < 2048, path


write(
    "add",
    [helper.make_node("Add", ["a", "b"], ["sum"])],
    [value("a", F32, ["N", 3]), value("b", F32, ["N", 3])],
    [value("sum", F32, ["N", 3])],
)

write(
    "double_precision",
    [helper.make_node("Add", ["a", "a"], ["sum"])],
    [value("a", TensorProto.DOUBLE, ["N"])],
    [value("sum", TensorProto.DOUBLE, ["N"])],
)

write(
    "linear",
    [helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)],
    [value("x", F32, ["N", 3])],
    [value("y", F32, ["N", 2])],
    [external("weight", (2, 3), 8)],
)

# A minimal decoder: the sum of previous inputs is a cache input and output.
write(
    "running_sum",
    [
        helper.make_node("Add", ["latent", "cache.00"], ["next_cache.00"]),
        helper.make_node("Neg", ["next_cache.00"], ["frames"]),
    ],
    [value("latent", F32, ["N"]), value("cache.00", F32, ["N"])],
    [value("frames", F32, ["N"]), value("next_cache.00", F32, ["N"])],
)

# A cache that is read after the next one is written.
write(
    "late_read",
    [
        helper.make_node("Add", ["latent", "cache.00"], ["next_cache.00"]),
        helper.make_node("Mul", ["next_cache.00", "cache.00"], ["frames"]),
    ],
    [value("latent", F32, ["N"]), value("cache.00", F32, ["N"])],
    [value("frames", F32, ["N"]), value("next_cache.00", F32, ["N"])],
)

# An output that is an input.
write(
    "passthrough",
    [helper.make_node("Neg", ["x"], ["negated"])],
    [value("x", F32, ["N"])],
    [value("negated", F32, ["N"]), value("x", F32, ["N"])],
)

# Runs `rounds` products sequentially.
write(
    "loop",
    [
        helper.make_node(
            "Loop",
            ["rounds", "", "x"],
            ["y"],
            body=helper.make_graph(
                [
                    helper.make_node("MatMul", ["state", "state"], ["product"]),
                    helper.make_node("Tanh", ["product"], ["next_state"]),
                    helper.make_node("Identity", ["keep_going"], ["still_going"]),
                ],
                "body",
                [
                    value("round", I64, []),
                    value("keep_going", TensorProto.BOOL, []),
                    value("state", F32, [64, 64]),
                ],
                [value("still_going", TensorProto.BOOL, []), value("next_state", F32, [64, 64])],
            ),
        )
    ],
    [value("rounds", I64, []), value("x", F32, [64, 64])],
    [value("y", F32, [64, 64])],
)

# Allocates a tensor of the shape in the input.
write(
    "fill",
    [helper.make_node("ConstantOfShape", ["shape"], ["filled"])],
    [value("shape", I64, [2])],
    [value("filled", F32, ["A", "B"])],
)

write(
    "wide",
    [helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)],
    [value("x", F32, ["N", WIDE_SHAPE[1]])],
    [value("y", F32, ["N", WIDE_SHAPE[0]])],
    [external("weight", WIDE_SHAPE, WIDE_OFFSET)],
)

# Every format from f32, each as an output that is an input, and back.
write(
    "formats_from_f32",
    [helper.make_node("Cast", ["x"], [name], to=format) for name, format in FORMATS.items()],
    [value("x", F32, ["N"])],
    [value(name, format, ["N"]) for name, format in FORMATS.items()],
)
write(
    "formats_passed",
    [helper.make_node("Not", ["bool"], ["inverted"])],
    [value(name, format, ["N"]) for name, format in FORMATS.items()],
    [value("inverted", TensorProto.BOOL, ["N"])]
    + [value(name, format, ["N"]) for name, format in FORMATS.items()],
)
write(
    "formats_to_f32",
    [helper.make_node("Cast", [name], [f"{name}.f32"], to=F32) for name in FORMATS],
    [value(name, format, ["N"]) for name, format in FORMATS.items()],
    [value(f"{name}.f32", F32, ["N"]) for name in FORMATS],
)

# Products whose bits depend on the order of sums, without and with an operator of Rushes.
PRODUCTS = [
    helper.make_node("MatMul", ["x", "weight"], ["product"]),
    helper.make_node("Tanh", ["product"], ["squashed"]),
    helper.make_node("MatMul", ["squashed", "weight"], ["again"]),
    helper.make_node("Softmax", ["again"], ["y"], axis=-1),
]
PRODUCT_INPUTS = [value("x", F32, [1, "N", 64]), value("weight", F32, [64, 64])]
write("products", PRODUCTS, PRODUCT_INPUTS, [value("y", F32, [1, "N", 64])])
write(
    "quantised_products",
    PRODUCTS + [helper.make_node("RowQuant", ["y"], ["values", "scales"], domain="rushes", asymmetric=1)],
    PRODUCT_INPUTS,
    [value("values", TensorProto.UINT8, [1, "N", 64]), value("scales", F32, [1, "N", 2])],
)
