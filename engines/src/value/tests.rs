use super::*;
use crate::{
    Backend, Cancel, Copied, CopyCounts, GraphSource, OnnxRuntime, OpenOptions, Outputs, WeightMemory,
};
use bundle::units::ByteCount;
use half::{bf16, f16};
use ndarray::{Array1, Array2, array};
use std::path::Path;

#[test]
fn an_array_in_standard_layout_is_not_copied() {
    let array = array![[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
    let address = array.as_ptr().addr();
    let value = Value::from_f32(array);
    assert_eq!(value.address(), Some(address));
    assert_eq!((value.element(), value.shape()), (ElementType::F32, &[3, 2][..]));
    assert_eq!(value.device(), Device::CPU);
    assert_eq!(value.view_f32().unwrap()[[2, 0]], 5.0);
}

#[test]
fn a_transposed_array_is_converted_to_row_major_order() {
    let value = Value::from_f32(array![[1.0f32, 2.0], [3.0, 4.0]].reversed_axes());
    assert_eq!(value.to_f32().unwrap().as_slice(), Some(&[1.0, 3.0, 2.0, 4.0][..]));
}

#[test]
fn integers_cannot_be_read_as_floats() {
    let value = Value::from_i64(Array2::<i64>::zeros((1, 4)));
    insta::assert_snapshot!(value.to_f32().unwrap_err(), @"a tensor cannot be read as f32: its number format is i64 (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    assert_eq!(format!("{value:?}"), "Value(i64 [1, 4])");
}

/// A tensor of every format that arrays can have, with the values 0, 1 and 2.
fn arrays() -> [Value; 6] {
    fn value<T: Element>(from: impl Fn(u8) -> T) -> Value {
        Value::from_array(Array1::from_iter((0..3).map(from)))
    }
    [
        value(f32::from),
        value(|n| f16::from_f32(n.into())),
        value(|n| bf16::from_f32(n.into())),
        value(i64::from),
        value(|n| n.cast_signed()),
        value(|n| n),
    ]
}

#[test]
fn an_array_is_read_back_in_its_own_format_only() {
    fn read<T: Element + Into<f64>>(value: &Value) -> Option<f64> {
        assert_eq!(value.view::<T>().is_ok(), value.element() == T::ELEMENT);
        value.to_array::<T>().ok().map(|array| array[[2]].clone().into())
    }
    for value in arrays() {
        let read = [
            read::<f32>(&value),
            read::<f16>(&value),
            read::<bf16>(&value),
            read::<i8>(&value),
            read::<u8>(&value),
            value.to_array::<i64>().ok().map(|array| array[[2]] as f64),
        ];
        let read: Vec<f64> = read.into_iter().flatten().collect();
        assert_eq!(read, [2.0], "{value:?}");
    }
}

/// Opens a graph of `tests/data` and runs it.
fn run(name: &str, inputs: &[(&str, &Value)]) -> Outputs {
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.onnx"));
    let runtime = OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let options = OpenOptions::cpu(None, WeightMemory::Mapped);
    let mut graph = Backend::open(&runtime, GraphSource::File(&graph), &options).unwrap();
    graph.run(inputs, &Cancel::new()).unwrap()
}

fn owner(value: &Value) -> Option<&Value> {
    match &value.tensor.data {
        Data::Output(output) => output._owner.as_ref(),
        Data::Host(_) | Data::Device(_) => None,
    }
}

#[test]
fn an_output_that_is_an_input_keeps_it_in_every_format() {
    let mut given: Vec<(String, Value)> =
        run("formats_from_f32", &[("x", &Value::from_f32(array![0.0f32, 1.0, 2.0]))]).into_iter().collect();
    assert!(given.iter().all(|(_, value)| owner(value).is_none() && value.device() == Device::CPU));
    let check = |given: &[(String, Value)]| {
        let inputs: Vec<(&str, &Value)> = given.iter().map(|(name, value)| (&**name, value)).collect();
        let mut outputs = run("formats_passed", &inputs);
        assert!(owner(&outputs.take("inverted").unwrap()).is_none());
        for (name, input) in given {
            let output = outputs.take(name).unwrap();
            assert_eq!(output.element().to_string(), *name);
            assert_eq!((output.address(), output.device()), (input.address(), Device::CPU), "{name}");
            let owner = owner(&output).unwrap_or_else(|| panic!("{name} has no owner"));
            assert!(Arc::ptr_eq(&owner.tensor, &input.tensor), "{name}");
        }
    };
    assert_eq!(given.len(), 6);
    check(&given);
    // The same with arrays, in the formats that arrays can have.
    let mut replaced = 0;
    for array in arrays() {
        for (_, value) in given.iter_mut().filter(|(_, value)| value.element() == array.element()) {
            *value = array.clone();
            replaced += 1;
        }
    }
    assert_eq!(replaced, 4);
    check(&given);
}

#[test]
fn an_output_without_elements_has_no_address() {
    let empty = Value::from_f32(Array1::<f32>::zeros(0));
    for (name, output) in run("formats_from_f32", &[("x", &empty)]) {
        assert_eq!(output.shape(), [0], "{name}");
        assert!(owner(&output).is_none(), "{name}");
    }
}

/// Memory of a device that is host memory, and a value in it.
fn on_other_device(device: &str, value: &Value) -> (Arc<DeviceMemory>, Value) {
    let runtime = OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let device: Device = device.parse().unwrap();
    let memory = Arc::new(DeviceMemory::in_host_memory(device, runtime.environment()));
    let tensor = Arc::new(DeviceTensor::upload(&memory, &value.on_host().unwrap()).unwrap());
    let (element, shape) = (value.element(), value.shape().to_vec());
    (memory, Value::new(Data::Device(DeviceOutput { tensor, element, shape })))
}

#[test]
fn a_tensor_in_the_memory_of_a_device_is_copied_back_and_not_read_in_place() {
    for array in arrays() {
        let (memory, value) = on_other_device("cuda:1", &array);
        assert_eq!(value.device().to_string(), "cuda:1");
        assert_eq!((value.element(), value.shape()), (array.element(), array.shape()));
        let before = memory.counts();
        if let Ok(expected) = array.to_array::<f32>() {
            assert_eq!(value.to_f32().unwrap(), expected);
            let copied = memory.counts().since(before).to_host;
            assert_eq!(copied, Copied { tensors: 1, bytes: ByteCount(12) });
        } else {
            assert!(matches!(value.to_f32(), Err(TensorError::WrongElement { .. })));
            assert_eq!(memory.counts(), before, "nothing is copied in vain");
        }
    }
    let (_, value) = on_other_device("cuda:1", &Value::from_f32(array![1.0f32]));
    insta::assert_snapshot!(value.view_f32().unwrap_err(), @"a tensor cannot be read in place: its elements are in the memory of cuda:1 (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    assert!(matches!(value.view::<i8>(), Err(TensorError::WrongElement { .. })));
}

#[test]
fn a_value_crosses_to_a_device_once_whoever_uses_it() {
    let (memory, _) = on_other_device("webgpu:0", &Value::from_f32(array![0.0f32]));
    let before = memory.counts();
    let value = Value::from_f32(array![1.0f32, 2.0]);
    let clone = value.clone();
    let first = value.on_device(&memory).unwrap();
    assert!(Arc::ptr_eq(&first, &clone.on_device(&memory).unwrap()));
    assert_eq!(memory.counts().since(before).to_device, Copied { tensors: 1, bytes: ByteCount(8) });
    // Another value of the same elements is another tensor.
    drop(Value::from_f32(value.to_f32().unwrap()).on_device(&memory).unwrap());
    assert_eq!(memory.counts().since(before).to_device.tensors, 2);
    assert_eq!(memory.counts().since(before).to_host.tensors, 0);
}

#[test]
fn a_value_of_one_device_reaches_another_through_host_memory_once() {
    let (first, value) = on_other_device("cuda:0", &Value::from_f32(array![3.0f32]));
    let (second, _) = on_other_device("cuda:1", &Value::from_f32(array![0.0f32]));
    let before = (first.counts(), second.counts());
    for _ in 0..2 {
        let copy = value.on_device(&second).unwrap();
        let read = second.download(copy.tensor()).unwrap();
        assert_eq!(read.try_extract_array::<f32>().unwrap()[[0]], 3.0);
    }
    // Graphs on the CPU take the copy that crossed.
    assert!(value.on_host().is_ok());
    assert_eq!(first.counts().since(before.0).to_host.tensors, 1);
    assert_eq!(second.counts().since(before.1).to_device.tensors, 1);
}

#[test]
fn a_tensor_without_elements_is_not_copied() {
    let (memory, value) = on_other_device("cuda:0", &Value::from_f32(Array2::<f32>::zeros((0, 3))));
    assert_eq!(value.to_f32().unwrap().shape(), [0, 3]);
    assert_eq!(memory.counts(), CopyCounts::default());
}
