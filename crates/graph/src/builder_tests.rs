use super::*;
use crate::Model;
use crate::check::check;
use crate::formats::Formats;
use proptest::prelude::*;

fn builder() -> (GraphBuilder, Tensor) {
    let mut graph = GraphBuilder::new("test");
    let shape = [Dim::symbol("B"), 4.into(), Dim::symbol("rows").times(2), Dim::symbol("columns").times(2)];
    let x = graph.input("x", ElementType::F32, &shape);
    (graph, x)
}

#[test]
fn a_wrong_shape_is_an_error_with_the_node_and_the_tensors() {
    let (mut graph, x) = builder();
    let wide = graph.constant("wide", &[5], &[0.0; 5]).unwrap();
    let error = graph.scoped("block.3", |graph| graph.add(&x, &wide)).unwrap_err();
    insta::assert_snapshot!(error, @"the graph cannot be built at `block.3/Add`: it needs shapes that broadcast and equal number formats, but was given x f32[B,4,2*rows,2*columns] and wide f32[5] (check that the config files belong to these weights)");
}

#[test]
fn every_operator_refuses_wrong_operands() {
    let (mut graph, x) = builder();
    let g = &mut graph;
    let flat = g.constant("flat", &[3, 5], &[0.0; 15]).unwrap();
    let vector = g.constant("vector", &[5], &[0.0; 5]).unwrap();
    assert!(g.linear(&x, &flat, None).is_err());
    assert!(g.linear(&flat, &flat, Some(&vector)).is_err());
    assert!(g.convolve(&x, &flat, &vector).is_err());
    assert!(g.layer_norm(&x, &vector, &vector, 1e-6).is_err());
    assert!(g.rms_norm(&x, &vector, 1e-6).is_err());
    assert!(g.gather(&flat, &vector).is_err());
    assert!(g.reshape(&flat, &[4.into(), 4.into()]).is_err());
    assert!(g.transpose(&flat, &[0, 0]).is_err());
    assert!(g.concat(&[&flat, &vector], 0).is_err());
    assert!(g.concat(&[], 0).is_err());
    assert!(g.slice(&flat, 1, 2, 6).is_err());
    assert!(g.slice(&flat, 1, 2, 2).is_err());
    assert!(g.slice(&x, 0, 0, 1).is_err(), "a span of an unknown extent");
    let attention = crate::Attention { heads: 2, scale: 1.0 };
    assert!(g.attention(attention, &flat, &flat, &flat, None).is_err());
    assert!(g.rotate_interleaved(2, &flat, &flat, &flat).is_err());
    assert!(g.zeros(&[Dim::symbol("undeclared")]).is_err());
    assert!(g.pixel_shuffle(&x, 3).is_err());
}

#[test]
fn sizes_are_read_from_inputs_only_where_they_cannot_be_inferred() {
    let (mut graph, x) = builder();
    let [b, c, h, w] = [0, 1, 2, 3].map(|axis| x.shape()[axis].clone());
    let flat = graph.reshape(&x, &[b.clone(), c.clone(), h.times(w.clone())]).unwrap();
    let back = graph.reshape(&flat, &[b, c, h, w]).unwrap();
    graph.output("y", &back).unwrap();
    insta::assert_snapshot!(graph.finish().unwrap().dump(), @"
    input x f32 [B,4,2*rows,2*columns]
    constant shape [0, 4, -1] i64 [3]
    constant integer 0 i64 [1]
    constant integer 4 i64 [1]
    constant integer -1 i64 [1]
    Reshape = Reshape(x, shape [0, 4, -1])
    Shape = Shape(x) {start=2, end=3}
    Concat = Concat(integer 0, integer 4, Shape, integer -1) {axis=0}
    Reshape.2 = Reshape(Reshape, Concat)
    y = Identity(Reshape.2)
    output y f32 [B,4,2*rows,2*columns]
    ");
}

/// A plain graph of a convolution of `x` in a format, with an f32 output.
fn convolution(mut g: GraphBuilder, format: ElementType) -> GraphBuilder {
    let mut tensor = |name: &str, shape: &[usize]| {
        let shape: Vec<Dim> = shape.iter().map(|size| Dim::from(*size)).collect();
        g.input(name, format, &shape)
    };
    let (x, weight, bias) = (tensor("x", &[1, 4, 6, 6]), tensor("w", &[8, 4, 3, 3]), tensor("b", &[8]));
    let y = g.convolve(&x, &weight, &bias).unwrap();
    let y = g.cast(&y, ElementType::F32);
    g.output("y", &y).unwrap();
    g
}

#[test]
fn convolutions_in_bf16_raise_the_version_of_plain_graphs() {
    let version =
        |g: GraphBuilder, format| convolution(g, format).finish().unwrap().proto.opset_import[0].version;
    assert_eq!(version(GraphBuilder::plain("test"), ElementType::F32), 21);
    assert_eq!(version(GraphBuilder::plain("test"), ElementType::F16), 21);
    assert_eq!(version(GraphBuilder::plain("test"), ElementType::Bf16), 22);
    assert_eq!(version(GraphBuilder::new("test"), ElementType::F32), 23);
    assert_eq!(version(GraphBuilder::cuda("test"), ElementType::Bf16), 23);
    let mut g = GraphBuilder::plain("test");
    let x = g.input("x", ElementType::Bf16, &[4.into()]);
    let y = g.tanh(&x);
    g.output("y", &y).unwrap();
    assert_eq!(g.finish().unwrap().proto.opset_import[0].version, 21, "no operator needs a newer one");
}

#[test]
fn inputs_that_are_left_out_at_the_end_are_not_written() {
    let (mut g, x) = builder();
    let weight = g.constant("weight", &[3, 4], &[0.0; 12]).unwrap();
    let rows = g.input("rows", ElementType::F32, &[Dim::symbol("n"), 4.into()]);
    let product = g.linear(&rows, &weight, None).unwrap();
    g.output("product", &product).unwrap();
    let doubled = g.double_pixels(&x).unwrap();
    g.output("doubled", &doubled).unwrap();
    let mut model = g.finish().unwrap();
    let nodes = &mut model.proto.graph.as_mut().unwrap().node;
    let inputs = |name: &str| &nodes.iter().find(|node| node.op_type == name).unwrap().input;
    assert_eq!(inputs("Gemm"), &["rows", "weight"]);
    assert_eq!(inputs("Resize"), &["x", "", "scales of height and width"]);
    nodes[0].input.push(String::new());
    let graph = model.proto.graph.as_ref().unwrap();
    let error = check(graph, &Formats::of(graph)).unwrap_err();
    insta::assert_snapshot!(error, @"the graph cannot be built at `Gemm`: its last input is empty (this is a fault of rushes, not of the input: report it with this message and the command or request)");
}

#[test]
fn a_wrong_declaration_of_a_format_is_refused_when_the_graph_is_built() {
    let x = |g: &mut GraphBuilder| g.input("x", ElementType::Bf16, &[2.into(), 4.into()]);
    // The operator is said to return f32, and returns bf16.
    let mut g = GraphBuilder::plain("test");
    let values = x(&mut g);
    let wrong = g.node(Operator::new("Relu"), &[Some(&values)], ElementType::F32, values.shape().to_vec());
    g.output("y", &wrong).unwrap();
    insta::assert_snapshot!(g.finish().unwrap_err(), @"the output `y` of the graph cannot be f32: it is computed in bf16 (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    // A product of two formats.
    let mut g = GraphBuilder::plain("test");
    let values = x(&mut g);
    let weight = g.constant("weight", &[3, 4], &[0.0; 12]).unwrap();
    let product = g.linear(&values, &weight, None).unwrap();
    g.output("y", &product).unwrap();
    insta::assert_snapshot!(g.finish().unwrap_err(), @"the graph cannot be built at `Gemm`: its inputs are bf16, f32, not bf16, bf16 (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    // An input that nothing computes.
    let mut g = GraphBuilder::plain("test");
    let unknown = Tensor::new("unknown", ElementType::F32, vec![4.into()]);
    g.output("y", &unknown).unwrap();
    insta::assert_snapshot!(g.finish().unwrap_err(), @"the graph cannot be built at `Identity`: no node before it computes `unknown` (this is a fault of rushes, not of the input: report it with this message and the command or request)");
}

#[test]
fn graphs_for_cuda_name_outputs_directly_and_have_no_operators_without_kernels() {
    let mut g = GraphBuilder::cuda("test");
    let x = g.input("x", ElementType::F32, &[Dim::symbol("n"), 2.into()]);
    let sum = g.add(&x, &x).unwrap();
    let y = g.tanh(&sum);
    g.output("sum", &sum).unwrap();
    g.output("y", &y).unwrap();
    g.output("again", &sum).unwrap();
    g.output("same", &x).unwrap();
    let zeros = g.zeros(x.shape()).unwrap();
    g.output("zeros", &zeros).unwrap();
    insta::assert_snapshot!(g.finish().unwrap().dump(), @"
    input x f32 [n,2]
    constant integer 2 i64 [1]
    constant scalar 0e0 f32 []
    sum = Add(x, x)
    y = Tanh(sum)
    again = Identity(sum)
    same = Identity(x)
    Shape = Shape(x) {start=0, end=1}
    Concat = Concat(Shape, integer 2) {axis=0}
    zeros = Expand(scalar 0e0, Concat)
    output sum f32 [n,2]
    output y f32 [n,2]
    output again f32 [n,2]
    output same f32 [n,2]
    output zeros f32 [n,2]
    ");
    let mut g = GraphBuilder::cuda("test");
    let x = g.input("x", ElementType::F32, &[4.into()]);
    let [cos, sin] = g.cos_and_sin(&x).unwrap();
    g.output("cos", &cos).unwrap();
    g.output("sin", &sin).unwrap();
    let model = g.finish().unwrap();
    let nodes = &model.proto.graph.as_ref().unwrap().node;
    assert!(nodes.iter().all(|node| ["Add", "Sub", "Mul", "Floor"].contains(&node.op_type.as_str())));
    let mut g = GraphBuilder::new("test");
    let narrow = g.input("x", ElementType::Bf16, &[4.into()]);
    assert!(g.cos_and_sin(&narrow).is_err());
}

#[test]
fn a_weight_is_declared_once_and_must_match_its_span() {
    let mut graph = GraphBuilder::new("test");
    let span = |location: &str, length| ExternalData { location: location.into(), offset: 123, length };
    let good = span("weights/model.safetensors", 24);
    let first = graph.external("w", ElementType::F32, &[2, 3], &good).unwrap();
    assert_eq!(graph.external("w", ElementType::F32, &[2, 3], &good).unwrap(), first);
    assert!(graph.external("w", ElementType::F32, &[3, 2], &good).is_err(), "one name, two shapes");
    for wrong in [
        span("weights/model.safetensors", 20),
        span("../model.safetensors", 24),
        span("/model.safetensors", 24),
        span("weights/../../model.safetensors", 24),
        span("", 24),
    ] {
        assert!(graph.external("v", ElementType::F32, &[2, 3], &wrong).is_err(), "{wrong:?} was accepted");
    }
    let model = graph.finish().unwrap();
    assert_eq!(model.external_data(), [good]);
}

#[test]
fn a_graph_survives_writing_and_reading_and_a_truncated_file_is_refused() {
    let (mut graph, x) = builder();
    let y = graph.silu(&x).unwrap();
    graph.output("y", &y).unwrap();
    let model = graph.finish().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("g.onnx");
    model.write(&path).unwrap();
    assert_eq!(Model::read(&path).unwrap(), model);
    assert_eq!(Model::read(&path).unwrap().signature(), model.signature());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    assert!(matches!(Model::read(&path), Err(Error::NotAGraph { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(Model::read(&path), Err(Error::NotAGraph { .. })));
}

proptest! {
    #[test]
    fn reading_never_panics_on_arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.onnx");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(model) = Model::read(&path) {
            let _ = model.dump();
            let _ = model.signature();
        }
    }

    #[test]
    fn a_reshape_is_accepted_exactly_if_the_number_of_elements_is_equal(
        a in proptest::collection::vec(1_usize..6, 1..4), b in proptest::collection::vec(1_usize..6, 1..4),
    ) {
        let mut graph = GraphBuilder::new("test");
        let dims = |sizes: &[usize]| sizes.iter().map(|size| Dim::from(*size)).collect::<Vec<_>>();
        let x = graph.input("x", ElementType::F32, &dims(&a));
        let same = a.iter().product::<usize>() == b.iter().product::<usize>();
        prop_assert_eq!(graph.reshape(&x, &dims(&b)).is_ok(), same);
    }
}
