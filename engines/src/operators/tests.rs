//! Runs graphs of one operator whose shapes or attributes do not match. ONNX Runtime does not check them.

use crate::{Cancel, Engine, Error, GraphSource, OnnxRuntime, OpenOptions, Value, WeightMemory};
use bundle::dtype::ElementType;
use bundle::signature::{Extent, Signature, TensorSpec};
use ndarray::{ArrayD, IxDyn};
use std::num::NonZeroUsize;

/// Number formats of ONNX.
const F32: u64 = 1;
const U8: u64 = 2;
const I8: u64 = 3;
const I32: u64 = 6;
const I64: u64 = 7;
const BF16: u64 = 16;

/// Fields of a protocol buffer.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7F | 0x80) as u8);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.as_ref().len() as u64);
        self.0.extend(value.as_ref());
        self
    }

    fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, value.0)
    }
}

#[derive(Debug, Clone, Copy)]
enum Attribute {
    Number(i64),
    Float(f32),
}

/// A graph of one operator. Its first input is the input of the graph; the others are constants.
#[derive(Debug, Clone)]
struct Case {
    operator: &'static str,
    attributes: Vec<(&'static str, Attribute)>,
    inputs: Vec<(u64, Vec<usize>)>,
    /// Axes of inputs that may have any extent.
    free: Vec<(usize, usize)>,
    /// Number of outputs.
    outputs: usize,
    /// Axes of the first output.
    rank: usize,
}

impl Case {
    fn node(operator: &str, domain: &str, inputs: &[String], outputs: &[String]) -> Message {
        let node = inputs.iter().fold(Message::default(), |node, name| node.bytes(1, name));
        let node = outputs.iter().fold(node, |node, name| node.bytes(2, name));
        node.bytes(3, operator.to_owned() + &outputs[0]).bytes(4, operator).bytes(7, domain)
    }

    fn cast(from: &str, to: &str, element: u64) -> Message {
        let attribute = Message::default().bytes(1, "to").number(3, element).number(20, 2);
        Self::node("Cast", "", &[from.to_owned()], &[to.to_owned()]).message(5, attribute)
    }

    fn value(name: &str, shape: impl IntoIterator<Item = Message>) -> Message {
        let shape = shape.into_iter().fold(Message::default(), |shape, extent| shape.message(1, extent));
        let tensor = Message::default().number(1, F32).message(2, shape);
        Message::default().bytes(1, name).message(2, Message::default().message(1, tensor))
    }

    /// The bytes of the model `x -> Cast -> operator -> Cast -> y`.
    fn model(&self) -> Vec<u8> {
        let names: Vec<String> = (0..self.inputs.len()).map(|index| format!("i{index}")).collect();
        let outputs: Vec<String> = (0..self.outputs).map(|index| format!("o{index}")).collect();
        let mut node = Self::node(self.operator, super::DOMAIN, &names, &outputs);
        for (name, value) in &self.attributes {
            let attribute = Message::default().bytes(1, name);
            node = node.message(
                5,
                match value {
                    Attribute::Number(value) => attribute.number(3, value.cast_unsigned()).number(20, 2),
                    Attribute::Float(value) => attribute.float(2, *value).number(20, 1),
                },
            );
        }
        let mut graph = Message::default()
            .message(1, Self::cast("x", "i0", self.inputs[0].0))
            .message(1, node)
            .message(1, Self::cast("o0", "y", F32))
            .bytes(2, "case");
        for ((element, shape), name) in self.inputs.iter().zip(&names).skip(1) {
            let bytes = match *element {
                I64 => 8,
                F32 | I32 => 4,
                BF16 => 2,
                _ => 1,
            };
            let tensor =
                shape.iter().fold(Message::default(), |tensor, extent| tensor.number(1, *extent as u64));
            let zeros = vec![0; bytes * shape.iter().product::<usize>()];
            graph = graph.message(5, tensor.number(2, *element).bytes(8, name).bytes(9, zeros));
        }
        let fixed = self.inputs[0].1.iter().map(|extent| Message::default().number(1, *extent as u64));
        let dynamic = (0..self.rank).map(|axis| Message::default().bytes(2, format!("n{axis}")));
        let graph = graph.message(11, Self::value("x", fixed)).message(12, Self::value("y", dynamic));
        let opset = |domain: &str, version| Message::default().bytes(1, domain).number(2, version);
        let model = Message::default().number(1, 9).message(7, graph);
        model.message(8, opset("", 19)).message(8, opset(super::DOMAIN, 1)).0
    }

    fn run(&self, onnx: &OnnxRuntime) -> Result<(), Error> {
        let spec = |name: &str, shape| TensorSpec { name: name.into(), element: ElementType::F32, shape };
        let shape = &self.inputs[0].1;
        let signature = Signature {
            inputs: vec![spec("x", shape.iter().map(|extent| Extent::Fixed(*extent)).collect())],
            outputs: vec![spec(
                "y",
                (0..self.rank).map(|axis| Extent::Dynamic(format!("n{axis}"))).collect(),
            )],
        };
        let model = self.model();
        let source = GraphSource::Memory { name: self.operator, bytes: &model };
        let options = OpenOptions::cpu(NonZeroUsize::new(2), WeightMemory::Mapped);
        let mut engine = Engine::open(onnx, source, &signature, &options)?;
        let x = Value::from_f32(ArrayD::<f32>::zeros(IxDyn(shape)));
        engine.run(&[("x", &x)], &Cancel::new()).map(drop)
    }

    fn with_attribute(&self, name: &str, value: i64) -> Self {
        let mut changed = self.clone();
        for attribute in changed.attributes.iter_mut().filter(|attribute| attribute.0 == name) {
            attribute.1 = Attribute::Number(value);
        }
        changed
    }
}

/// Creates a case.
fn case(
    operator: &'static str,
    attributes: &[(&'static str, Attribute)],
    inputs: &[(u64, &[usize])],
    free: &[(usize, usize)],
) -> Case {
    Case {
        operator,
        attributes: attributes.to_vec(),
        inputs: inputs.iter().map(|(element, shape)| (*element, shape.to_vec())).collect(),
        free: free.to_vec(),
        outputs: if operator == "NormQuant" { 3 } else { 1 },
        rank: inputs[0].1.len(),
    }
}

/// Linear layers with shapes that match, without and with a branch of rank 8 and an addend.
fn linear_cases() -> Vec<Case> {
    use Attribute::Number;
    let int8: [(u64, &[usize]); 6] =
        [(U8, &[1, 4, 8]), (F32, &[1, 4, 2]), (I8, &[2, 2, 64]), (I32, &[32]), (F32, &[32]), (F32, &[32])];
    let bf16: [(u64, &[usize]); 3] = [(BF16, &[1, 4, 8]), (BF16, &[2, 4, 32]), (F32, &[32])];
    let residual: [(u64, &[usize]); 2] = [(F32, &[1, 4, 32]), (F32, &[32])];
    // The map of tokens to rows.
    let map: [(u64, &[usize]); 1] = [(I64, &[1, 1])];
    let int8_added: [(u64, &[usize]); 6] = [
        (BF16, &[1, 4, 32]),
        (U8, &[1, 4, 8]),
        (F32, &[1, 4, 2]),
        (I8, &[2, 2, 64]),
        (I32, &[32]),
        (F32, &[32]),
    ];
    let bf16_added: [(u64, &[usize]); 4] =
        [(BF16, &[1, 4, 32]), (BF16, &[1, 4, 8]), (BF16, &[2, 4, 32]), (F32, &[32])];
    let (gelu, no_gelu, parts) = (("gelu", Number(1)), ("gelu", Number(0)), ("parts", Number(1)));
    vec![
        case("LinearQ", &[gelu], &int8, &[]),
        case("LinearBf16", &[no_gelu], &bf16, &[(0, 0), (0, 1)]),
        case("LinearQResidual", &[], &[&int8[..], &residual].concat(), &[]),
        case("LinearBf16Residual", &[], &[&bf16[..], &residual].concat(), &[]),
        case("LinearQ", &[gelu, parts], &[&int8[..], &int8_added].concat(), &[]),
        case("LinearBf16", &[no_gelu, parts], &[&bf16[..], &bf16_added].concat(), &[]),
        case("LinearQResidual", &[parts], &[&int8[..], &residual, &map, &int8_added].concat(), &[]),
        case("LinearBf16Residual", &[parts], &[&bf16[..], &residual, &map, &bf16_added].concat(), &[]),
    ]
}

/// The other operators with shapes that match.
fn other_cases() -> Vec<Case> {
    use Attribute::{Float, Number};
    let epsilon = ("epsilon", Float(1e-6));
    let frames = [
        ("scale", Float(0.5)),
        ("zero", Number(3)),
        ("side", Number(3)),
        ("doubles_pixels", Number(0)),
        ("splits_frames", Number(0)),
    ];
    vec![
        case("NormQuant", &[epsilon], &[(F32, &[1, 4, 8]), (F32, &[8]), (F32, &[8])], &[(0, 0), (0, 1)]),
        case("NormBf16", &[epsilon], &[(F32, &[1, 4, 8]), (F32, &[8]), (F32, &[8])], &[(0, 0), (0, 1)]),
        case("LinearStored", &[], &[(F32, &[4, 8]), (BF16, &[5, 8]), (F32, &[5])], &[(0, 0)]),
        case(
            "SelfAttention",
            &[("heads", Number(2)), epsilon, ("values_as_bytes", Number(1))],
            &[(BF16, &[1, 4, 96]), (F32, &[32]), (F32, &[32]), (F32, &[4, 8]), (F32, &[4, 8])],
            &[(0, 0)],
        ),
        case(
            "CrossAttention",
            &[("heads", Number(2)), epsilon],
            &[(BF16, &[1, 4, 32]), (BF16, &[1, 5, 64]), (F32, &[32]), (F32, &[32]), (F32, &[1, 5])],
            &[(0, 1)],
        ),
        case(
            "ChannelNormQuant",
            &[frames[0], frames[1], epsilon, ("silu", Number(1))],
            &[(F32, &[1, 2, 3, 8]), (F32, &[8])],
            &[(0, 0), (0, 1), (0, 2)],
        ),
        case(
            "CausalConvolution",
            &frames,
            &[
                (U8, &[2, 3, 5, 4]),
                (I8, &[1, 27, 64]),
                (I32, &[3, 16]),
                (F32, &[16]),
                (F32, &[16]),
                (U8, &[2, 3, 5, 4]),
                (F32, &[2, 3, 5, 16]),
            ],
            &[],
        ),
    ]
}

fn cases() -> Vec<Case> {
    linear_cases().into_iter().chain(other_cases()).collect()
}

#[test]
fn operators_whose_shapes_do_not_match_return_errors() {
    let onnx = OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"));
    for case in cases() {
        case.run(&onnx).unwrap_or_else(|error| panic!("{}: {error}", case.operator));
        let mut flat = case.clone();
        flat.inputs[0].1 = vec![1, 1, 1, 1, case.inputs[0].1.iter().product()];
        assert!(flat.run(&onnx).is_err(), "{}: input 0 with five axes", case.operator);
        for index in 0..case.inputs.len() {
            for axis in 0..case.inputs[index].1.len() {
                let extent = case.inputs[index].1[axis];
                for wrong in [extent + 1, extent / 2] {
                    if wrong == 0 && case.free.contains(&(index, axis)) {
                        continue;
                    }
                    let mut changed = case.clone();
                    changed.inputs[index].1[axis] = wrong;
                    let result = changed.run(&onnx);
                    let what = format!("{}: input {index} is {:?}", case.operator, changed.inputs[index].1);
                    assert_eq!(result.is_ok(), case.free.contains(&(index, axis)), "{what}: {result:?}");
                }
            }
        }
    }
}

#[test]
fn operators_with_unsupported_attributes_return_errors() {
    let onnx = OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let huge = [-1, i64::MIN, i64::MAX, 1 << 62, 1 << 40];
    for case in cases() {
        let wrong: &[(&str, &[i64])] = match case.operator {
            "SelfAttention" | "CrossAttention" => &[("heads", &[0, 3, 32])],
            "CausalConvolution" => &[
                ("side", &[0, 2, 4, 1]),
                ("zero", &[256]),
                ("doubles_pixels", &[1]),
                ("splits_frames", &[1]),
            ],
            "ChannelNormQuant" => &[("zero", &[256])],
            "LinearQ" | "LinearQResidual" | "LinearBf16" | "LinearBf16Residual" => &[("parts", &[0, 2, 3])],
            _ => &[],
        };
        let has = |name: &str| case.attributes.iter().any(|attribute| attribute.0 == name);
        for (name, values) in wrong.iter().filter(|wrong| has(wrong.0)) {
            for value in huge.iter().chain(*values) {
                let result = case.with_attribute(name, *value).run(&onnx);
                assert!(result.is_err(), "{}: {name} is {value}", case.operator);
            }
        }
    }
}
