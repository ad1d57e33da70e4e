//! Files that torch has written (`data/make.py`), and files whose fields are changed one by one.

use super::*;
use bundle::dtype::ElementType;
use test_support::torch_file::{TorchFile, TorchTensor, pickle};

const NAME: &str = "x.pth";

fn data(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/checkpoint/torch_file/data");
    std::fs::read(folder.join(name)).unwrap()
}

fn parsed(bytes: &[u8]) -> Result<Vec<HeaderTensor>, Error> {
    parse(Path::new(NAME), bytes)
}

fn refused(bytes: &[u8]) -> String {
    parsed(bytes).unwrap_err().to_string()
}

fn named<'a>(tensors: &'a [HeaderTensor], name: &str) -> &'a HeaderTensor {
    tensors.iter().find(|tensor| tensor.name == name).unwrap()
}

#[test]
fn files_of_torch_are_read_in_every_protocol() {
    let mut protocols = Vec::new();
    for file in ["tensors.pth", "protocol-4.pth"] {
        let bytes = data(file);
        let tensors = parsed(&bytes).unwrap();
        let values = |name: &str| {
            let tensor = named(&tensors, name);
            (tensor.element, tensor.shape.clone(), bytes[tensor.span.clone()].to_vec())
        };
        let floats: Vec<u8> = (0..6_u8).flat_map(|i| (f32::from(i) / 8.0).to_le_bytes()).collect();
        assert_eq!(values("a.weight"), (ElementType::F32, vec![2, 3], floats));
        assert_eq!(named(&tensors, "tied.weight").span, named(&tensors, "a.weight").span);
        assert_eq!(named(&tensors, "a.weight").span.start % 64, 0);
        let halves = [0x3f80_u16, 0xc000, 0x3f00].map(u16::to_le_bytes).concat();
        assert_eq!(values("b.bias"), (ElementType::Bf16, vec![3], halves));
        assert_eq!(values("scalar"), (ElementType::I64, vec![], 7_u64.to_le_bytes().to_vec()));
        assert_eq!(values("none"), (ElementType::F32, vec![0, 4], vec![]));
        protocols.push(tensors.len());
    }
    assert_eq!(protocols, [5, 5]);
    let module = parsed(&data("module.pth")).unwrap();
    assert_eq!(named(&module, "weight").shape, [2, 3]);
    assert_eq!(named(&module, "bias").element, ElementType::F16);
    let slices = parsed(&data("slices.pth")).unwrap();
    let (upper, lower) = (named(&slices, "upper"), named(&slices, "lower"));
    assert_eq!((upper.shape.as_slice(), lower.shape.as_slice()), (&[1, 2][..], &[2, 2][..]));
    assert_eq!(lower.span.start - upper.span.start, 16);
    let permuted = parsed(&data("permuted.pth")).unwrap();
    assert_eq!(named(&permuted, "turned").strides, Some(vec![1, 3]));
    assert_eq!(named(&permuted, "straight").strides, None);
    assert_eq!(named(&permuted, "turned").span, named(&permuted, "straight").span);
    assert_eq!(named(&permuted, "channels_last").strides, Some(vec![24, 1, 12, 6, 2]));
}

#[test]
fn what_is_no_dictionary_of_tensors_is_refused_by_name() {
    for (file, named) in [
        ("refused-nested.pth", "a dictionary under the name weights"),
        ("refused-list.pth", "the opcode EMPTY_LIST"),
        ("refused-parameter.pth", "the global torch._utils._rebuild_parameter"),
        ("refused-format.pth", "the global torch.DoubleStorage"),
        ("refused-module.pth", "the global torch.nn.modules.linear.Linear"),
        ("refused-number.pth", "a number under the name step"),
        ("refused-strides.pth", "tensor every_second of shape [3] is stored with the strides [2]"),
        ("refused-overlap.pth", "the tensors upper and lower overlap"),
        ("refused-legacy.pth", "it has the format of torch before 1.6"),
    ] {
        let error = refused(&data(file));
        assert!(error.contains(named) && error.contains(NAME), "{file}: {error}");
    }
    insta::assert_snapshot!(refused(&data("refused-legacy.pth")), @r#"x.pth cannot be read: it has the format of torch before 1.6, which is a program rather than data (save it again with a newer torch under another name: python -c 'import sys, torch; torch.save(torch.load(sys.argv[1], map_location="cpu", weights_only=True), sys.argv[2])' x.pth NEW)"#);
    insta::assert_snapshot!(refused(&data("refused-module.pth")), @"x.pth cannot be read: it holds the global torch.nn.modules.linear.Linear, and only a dictionary from names to tensors is read (save the dictionary of weights alone, torch.save(model.state_dict(), FILE), or use safetensors)");
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refused(&tar).contains("before 1.6"));
    assert!(refused(b"\x80\x04\x95").contains("does not begin like"));
    assert!(refused(b"").contains("does not begin like"));
}

fn tensor(name: &str, storage: &'static str, shape: &[u64]) -> TorchTensor {
    let element = if storage == "FloatStorage" { 4 } else { 2 };
    TorchTensor { name: name.into(), storage, element, shape: shape.to_vec() }
}

fn two() -> Vec<TorchTensor> {
    vec![tensor("a.weight", "FloatStorage", &[2, 3]), tensor("b.bias", "HalfStorage", &[5])]
}

fn two_bytes() -> Vec<u8> {
    TorchFile::new("model", &two()).to_bytes(&[&[1; 24], &[2; 10]])
}

#[test]
fn a_file_beyond_4_gib_is_read_and_its_parts_cover_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let tensors = vec![
        tensor("first", "FloatStorage", &[3]),
        tensor("large", "BFloat16Storage", &[3 << 16, 1 << 14]),
        tensor("far", "FloatStorage", &[7]),
    ];
    let layout = TorchFile::new("model", &tensors);
    let file = layout.write(&path).unwrap();
    let opened = File::open(&path).unwrap();
    let found = read(&path, &opened, layout.length).unwrap();
    for (tensor, offset) in tensors.iter().zip(&layout.offsets) {
        let found = named(&found, &tensor.name);
        assert_eq!((found.span.start as u64, found.span.len() as u64), (*offset, tensor.bytes()));
    }
    assert!(named(&found, "far").span.start > 1 << 32);
    let parts = super::super::weight_file::parts(&found, layout.length);
    assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
    assert_eq!((parts[0].start, parts.last().unwrap().end), (0, layout.length));
    // Each size in zip64 is checked, in all three places.
    let large = tensors[1].bytes().to_le_bytes();
    let mut changed = 0;
    for (at, part) in &layout.parts {
        for place in (0..(part.len() + 1).saturating_sub(8)).filter(|place| part[*place..place + 8] == large)
        {
            let wrong = (tensors[1].bytes() + 1).to_le_bytes();
            file.write_all_at(&wrong, at + place as u64).unwrap();
            let error = read(&path, &opened, layout.length).unwrap_err();
            assert!(matches!(error, Error::Header { .. }), "{error}");
            file.write_all_at(&large, at + place as u64).unwrap();
            changed += 1;
        }
    }
    assert_eq!(changed, 6);
    assert!(read(&path, &opened, layout.length).is_ok());
}

/// Changes the bytes at `offset` behind the `number`th occurrence of `mark`.
fn patched(number: usize, mark: &[u8], offset: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = two_bytes();
    let mut places = (0..=bytes.len() - mark.len()).filter(|at| bytes[*at..*at + mark.len()] == *mark);
    let at = places.nth(number).unwrap() + offset;
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

#[test]
fn fields_of_the_archive_that_contradict_each_other_are_refused() {
    assert_eq!(parsed(&two_bytes()).unwrap().len(), 2);
    let (local, central, end) = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06");
    // Entries are numbered in the order of the archive: data.pkl, byteorder, data/0, data/1, version.
    for (bytes, named) in [
        (patched(2, local, 8, &[8]), "data/0 has a header that contradicts"),
        (patched(2, local, 6, &[0, 0]), "data/0 has a header that contradicts"),
        (patched(2, local, 18, &[1]), "data/0 has another size in its header"),
        (patched(2, local, 22, &[1]), "data/0 has another size in its header"),
        (patched(2, local, 30, b"M"), "model/data/0 has another name"),
        (patched(2, local, 0, b"XX"), "data/0 has a header that contradicts"),
        (patched(2, b"PK\x07\x08", 8, &[25]), "data/0 has another size behind"),
        (patched(2, b"PK\x07\x08", 12, &[25]), "data/0 has another size behind"),
        (patched(3, central, 8, &[9]), "data/1 is encrypted"),
        (patched(3, central, 10, &[8]), "data/1 is compressed"),
        (patched(3, central, 20, &[11]), "data/1 has two sizes"),
        (patched(3, central, 34, &[1]), "data/1 is on another disk"),
        (patched(3, central, 46, &[0xff]), "entry 3 of its directory cannot be read: its name is not UTF-8"),
        (patched(3, central, 0, b"XX"), "entry 3 of its directory cannot be read: it has another signature"),
        (patched(3, central, 42, &[0, 0, 0, 0]), "overlaps the one before it"),
        (patched(0, end, 4, &[1]), "contradict each other"),
        (patched(0, end, 8, &[4]), "contradict each other"),
        (patched(0, end, 10, &[4]), "contradict each other"),
        (patched(0, end, 12, &[1]), "contradict each other"),
        (patched(0, end, 16, &[1]), "contradict each other"),
        (patched(0, end, 20, &[1]), "does not end with the directory"),
        (patched(0, b"PK\x06\x06", 4, &[1]), "zip64"),
        (patched(0, b"PK\x06\x06", 24, &[9]), "zip64"),
        (patched(0, b"PK\x06\x07", 8, &[9]), "zip64"),
        (patched(0, b"little", 0, b"bigend"), "byte order is \"bigend\""),
    ] {
        let error = refused(&bytes);
        assert!(error.contains(named), "{named}: {error}");
    }
    let appended = [two_bytes(), vec![0]].concat();
    assert!(refused(&appended).contains("bytes were appended"));
}

#[test]
fn a_file_that_is_cut_off_is_refused_at_any_length() {
    let whole = two_bytes();
    for length in 0..whole.len() {
        assert!(parsed(&whole[..length]).is_err(), "{length}");
    }
}

#[test]
fn at_most_10_000_entries_are_read() {
    let tensors: Vec<_> = (0..10_001).map(|i| tensor(&i.to_string(), "FloatStorage", &[0])).collect();
    let bytes = |count: usize| TorchFile::new("m", &tensors[..count]).to_bytes(&[]);
    // Three entries are not storages.
    assert_eq!(parsed(&bytes(9_997)).unwrap().len(), 9_997);
    assert!(refused(&bytes(9_998)).contains("10001 entries; the maximum is 10000"));
}

/// A file with the pickle `pickle` and the storages of [`two`].
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    TorchFile::with_pickle("model", pickle, &two()).to_bytes(&[])
}

/// The pickle of [`two`], with the first occurrence of `from` replaced.
fn changed(from: &[u8], to: &[u8]) -> Vec<u8> {
    let pickle = pickle(&two());
    let at = (0..=pickle.len() - from.len()).find(|at| pickle[*at..*at + from.len()] == *from).unwrap();
    with_pickle(&[&pickle[..at], to, &pickle[at + from.len()..]].concat())
}

#[test]
fn pickles_that_do_more_than_name_tensors_are_refused() {
    for (bytes, named) in [
        (changed(b"collections\nOrderedDict", b"os\nsystem"), "the global os.system"),
        (changed(b"torch\nFloatStorage", b"builtins\neval"), "the global builtins.eval"),
        (changed(b"\x80\x02", b"\x80\x01"), "the pickle protocol 1"),
        (changed(b"\x80\x02", b"\x80\x06"), "the pickle protocol 6"),
        (changed(b"\x80\x02", b"\x02\x80"), "does not begin with a protocol"),
        (changed(b"storage", b"module!"), "the persistent id module!"),
        (changed(b"u.", b"u\x81."), "the opcode NEWOBJ"),
        (changed(b"u.", b"u0."), "the opcode POP"),
        (changed(b"u.", b"u\xff."), "the opcode 0xff"),
        (changed(b"u.", b"u(."), "a value is missing on its stack"),
        (changed(b"u.", b"uN."), "values or bytes are left"),
        (changed(b"u.", b"u.."), "values or bytes are left"),
        (changed(b"u.", b"u"), "cut off"),
        (changed(b"u.", b"Nu."), "a key has no value"),
        (changed(b"u.", b"h\x05u."), "it recalls value 5"),
        (changed(b")R(", b"}("), ""),
        (changed(b"a.weight", b"\xffxxxxxxx"), "not UTF-8"),
        (changed(b"RtR", b"RNNtR"), "unexpected arguments"),
        (changed(b"RtR", b"tR"), ""),
        (with_pickle(b"\x80\x02N."), "None instead of a dictionary"),
        (with_pickle(b"\x80\x02}(K\x01K\x01u."), "a key that is a number"),
        (with_pickle(b"\x80\x02}}b."), ""),
        (with_pickle(b"\x80\x02}Nb."), "attributes of a dictionary"),
        (with_pickle(b"\x80\x02N)R."), "None is called"),
        (with_pickle(b"\x80\x02ctorch\nFloatStorage\n)R."), "a call of the storage class of f32"),
        (with_pickle(b"\x80\x02\x8a\x09123456789."), "a number has 9 bytes"),
    ] {
        match parsed(&bytes) {
            Err(error) => assert!(error.to_string().contains(named), "{named}: {error}"),
            Ok(_) => assert!(named.is_empty(), "{named} is read"),
        }
    }
}

#[test]
fn tensors_that_leave_their_storage_are_refused() {
    let first = |storage: i64, offset: i64, shape: [i64; 2], strides: [i64; 2]| {
        let mut pickle =
            b"\x80\x02}(X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage".to_vec();
        let integer = |number: i64| [&b"\x8a\x08"[..], &number.to_le_bytes()].concat();
        pickle.extend(b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu");
        pickle.extend(integer(storage));
        pickle.extend(b"tQ");
        pickle.extend([integer(offset), b"(".to_vec()].concat());
        pickle.extend(shape.map(integer).concat());
        pickle.extend(b"t(");
        pickle.extend(strides.map(integer).concat());
        pickle.extend(b"t\x89}tRu.");
        parsed(&with_pickle(&pickle)).map_err(|error| error.to_string())
    };
    // The first storage has six elements.
    let found = first(6, 2, [2, 2], [2, 1]).unwrap();
    assert_eq!((found[0].shape.as_slice(), found[0].span.len()), (&[2, 2][..], 16));
    for same in [first(6, 0, [1, 6], [99, 1]), first(6, 0, [6, 1], [1, 99]), first(6, 6, [0, 9], [7, 7])] {
        assert!(same.is_ok(), "{same:?}");
    }
    for (found, named) in [
        (first(5, 0, [1, 1], [1, 1]), "the storage 0 has 24 bytes, but 5 elements in f32 are stated"),
        (first(i64::MAX, 0, [1, 1], [1, 1]), "the storage 0 has 24 bytes"),
        (first(-1, 0, [1, 1], [1, 1]), "a storage has -1 elements"),
        (first(6, 3, [2, 2], [2, 1]), "needs 4 elements from 3 on, but its storage has 6"),
        (first(6, i64::MAX, [1, 1], [1, 1]), "needs 1 elements from"),
        (first(6, -1, [1, 1], [1, 1]), "begins before its storage"),
        (first(6, 0, [i64::MAX, 3], [3, 1]), "is too large"),
        (first(6, 0, [-1, 3], [3, 1]), "not natural numbers"),
        (first(6, 0, [2, 3], [1, 1]), "stored with the strides [1, 1]"),
        (first(6, 0, [2, 3], [0, 1]), "stored with the strides [0, 1]"),
    ] {
        let error = found.unwrap_err();
        assert!(error.contains(named), "{named}: {error}");
    }
    assert_eq!(first(6, 0, [2, 3], [1, 2]).unwrap()[0].strides, Some(vec![1, 2]));
    let missing = TorchFile::with_pickle("model", &pickle(&two()), &two()[..1]).to_bytes(&[]);
    assert!(refused(&missing).contains("the storage 1 of tensor b.bias is missing"));
    let twice = [tensor("a", "FloatStorage", &[1]), tensor("a", "FloatStorage", &[1])];
    assert!(refused(&TorchFile::new("model", &twice).to_bytes(&[])).contains("the name a occurs twice"));
}
