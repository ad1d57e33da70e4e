use super::*;
use crate::{Attention, Dim, GraphBuilder, Tensor};

/// A graph of a convolution and an attention, in a format.
fn graph(mut g: GraphBuilder, format: ElementType) -> Model {
    let tensor = |g: &mut GraphBuilder, name: &str, shape: &[usize]| -> Tensor {
        let shape: Vec<Dim> = shape.iter().map(|size| Dim::from(*size)).collect();
        g.input(name, format, &shape)
    };
    let x = tensor(&mut g, "x", &[1, 4, 6, 6]);
    let weight = tensor(&mut g, "weight", &[8, 4, 3, 3]);
    let bias = tensor(&mut g, "bias", &[8]);
    let y = g.convolve(&x, &weight, &bias).unwrap();
    let tokens = g.reshape(&y, &[1.into(), 36.into(), 8.into()]).unwrap();
    let mixed = g.attention(Attention { heads: 2, scale: 0.5 }, &tokens, &tokens, &tokens, None).unwrap();
    let mixed = g.cast(&mixed, F32);
    g.output("mixed", &mixed).unwrap();
    g.finish().unwrap()
}

fn names(refused: &[Refused]) -> Vec<String> {
    refused.iter().map(ToString::to_string).collect()
}

#[test]
fn plain_graphs_are_taken_in_the_formats_of_each_provider() {
    for by in Accelerator::ALL {
        let in_f32 = graph(GraphBuilder::plain("test"), F32);
        let expected: &[&str] = if by == Accelerator::Cuda { &["Identity (Identity in f32)"] } else { &[] };
        assert_eq!(names(&refused(&in_f32, by).unwrap()), expected, "{by}");
        let in_bf16 = refused(&graph(GraphBuilder::plain("test"), Bf16), by).unwrap();
        assert_eq!(
            in_bf16.is_empty(),
            by != Accelerator::WebGpu && by != Accelerator::Cuda,
            "{by}: {in_bf16:?}"
        );
    }
}

#[test]
fn fused_attention_is_refused_by_name() {
    let fused = graph(GraphBuilder::new("test"), Bf16);
    assert_eq!(
        names(&refused(&fused, Accelerator::TensorRt).unwrap()),
        ["MultiHeadAttention (com.microsoft.MultiHeadAttention in bf16)"]
    );
    assert_eq!(
        names(&refused(&graph(GraphBuilder::cuda("test"), Bf16), Accelerator::Cuda).unwrap()),
        [""; 0]
    );
}

#[test]
fn unknown_operators_and_newer_versions_are_refused() {
    let mut model = graph(GraphBuilder::plain("test"), F32);
    model.proto.graph.as_mut().unwrap().node[0].op_type = "Swish".into();
    let found = refused(&model, Accelerator::OpenVino).unwrap();
    assert_eq!(found[0].to_string(), "Conv (Swish in f32)");

    let mut g = GraphBuilder::plain("test");
    let x = g.input("x", F32, &[4.into()]);
    let [cos, _] = g.cos_and_sin(&x).unwrap();
    g.output("y", &cos).unwrap();
    let mut model = g.finish().unwrap();
    assert_eq!(refused(&model, Accelerator::WebGpu).unwrap(), []);
    model.proto.opset_import[0].version = 22;
    assert_eq!(
        names(&refused(&model, Accelerator::WebGpu).unwrap()),
        ["Cos (Cos in f32)", "Sin (Sin in f32)"]
    );
}
