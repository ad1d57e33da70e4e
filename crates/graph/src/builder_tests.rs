use super::*;
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
    insta::assert_snapshot!(graph.finish().dump(), @"
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
    let model = graph.finish();
    assert_eq!(model.external_data(), [good]);
}

#[test]
fn a_graph_survives_writing_and_reading_and_a_truncated_file_is_refused() {
    let (mut graph, x) = builder();
    let y = graph.silu(&x).unwrap();
    graph.output("y", &y).unwrap();
    let model = graph.finish();
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
