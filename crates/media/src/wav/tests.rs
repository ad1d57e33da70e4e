use super::*;
use proptest::prelude::*;

/// The longest sound of these tests.
const LONGEST: Duration = Duration::from_secs(600);

fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).unwrap();
    let mut chunk = [&name[..], &size.to_le_bytes(), content].concat();
    chunk.resize(chunk.len().next_multiple_of(2), 0);
    chunk
}

fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
    let content = [&b"WAVE"[..], &chunks.concat()].concat();
    chunk(b"RIFF", &content)
}

/// A chunk `fmt ` whose fields agree with each other.
fn fmt(tag: u16, channels: u16, rate: u32, bits: u16) -> Vec<u8> {
    let block = channels.wrapping_mul(bits / 8);
    let bytes = rate.wrapping_mul(u32::from(block));
    let [tag, channels, block, bits] = [tag, channels, block, bits].map(u16::to_le_bytes);
    [&tag[..], &channels, &rate.to_le_bytes(), &bytes.to_le_bytes(), &block, &bits].concat()
}

/// `WAVEFORMATEXTENSIBLE` with this number of bits in use and format.
fn extensible(channels: u16, rate: u32, bits: u16, used: u16, sub_format: u16) -> Vec<u8> {
    let guid = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B, 0x71];
    let more =
        [&22_u16.to_le_bytes()[..], &used.to_le_bytes(), &[3, 0, 0, 0], &sub_format.to_le_bytes(), &guid];
    [fmt(0xFFFE, channels, rate, bits), more.concat()].concat()
}

/// A file with these samples.
pub(crate) fn file(tag: u16, channels: u16, rate: u32, bits: u16, data: &[u8]) -> Vec<u8> {
    riff(&[chunk(b"fmt ", &fmt(tag, channels, rate, bits)), chunk(b"data", data)])
}

fn decode(content: &[u8]) -> Result<Wav, WavError> {
    Wav::decode(content, LONGEST)
}

fn samples(content: &[u8]) -> Vec<i16> {
    decode(content).unwrap().samples().to_vec()
}

#[test]
fn every_width_is_read_as_16_bits() {
    assert_eq!(samples(&file(1, 1, 8000, 8, &[0, 128, 255])), [-32_768, 0, 127 << 8]);
    assert_eq!(samples(&file(1, 2, 8000, 16, &[1, 0, 0xFF, 0xFF])), [1, -1]);
    assert_eq!(samples(&file(1, 1, 8000, 24, &[0x7F, 1, 0, 0x80, 1, 0, 0xFF, 0xFF, 0x7F])), [1, 2, i16::MAX]);
    let wide: Vec<u8> =
        [i32::MIN, 3 << 16, i32::MAX].iter().flat_map(|sample| sample.to_le_bytes()).collect();
    assert_eq!(samples(&file(1, 1, 8000, 32, &wide)), [i16::MIN, 3, i16::MAX]);
    let floats: Vec<u8> = [-1.0_f32, 0.5, 7.0, -7.0].iter().flat_map(|sample| sample.to_le_bytes()).collect();
    assert_eq!(samples(&file(3, 2, 192_000, 32, &floats)), [i16::MIN, 1 << 14, i16::MAX, i16::MIN]);
    for broken in [f32::NAN, f32::INFINITY] {
        let floats = [0.5_f32.to_le_bytes(), broken.to_le_bytes()].concat();
        assert_eq!(decode(&file(3, 1, 8000, 32, &floats)), Err(WavError::NotFinite { index: 1 }));
    }
}

#[test]
fn the_extensible_format_is_that_of_its_guid() {
    let of = |fmt: &[u8], data: &[u8]| riff(&[chunk(b"fmt ", fmt), chunk(b"data", data)]);
    assert_eq!(samples(&of(&extensible(2, 48_000, 16, 16, 1), &[1, 0, 2, 0])), [1, 2]);
    assert_eq!(samples(&of(&extensible(1, 48_000, 32, 32, 3), &0.25_f32.to_le_bytes())), [1 << 13]);
    // The upper 24 of 32 bits.
    assert_eq!(samples(&of(&extensible(1, 48_000, 32, 24, 1), &[0, 0, 5, 0])), [5]);
    let other = decode(&of(&extensible(1, 48_000, 16, 16, 0x55), &[0; 8]));
    assert_eq!(other, Err(WavError::Format { name: "MP3".into() }));
    let mut guid = extensible(1, 48_000, 16, 16, 1);
    guid[30] = 1;
    assert!(matches!(decode(&of(&guid, &[0; 8])), Err(WavError::Damaged { .. })));
    assert!(matches!(decode(&of(&guid[..38], &[0; 8])), Err(WavError::Damaged { .. })));
}

#[test]
fn chunks_may_be_in_any_order_and_among_others() {
    let (format, data) = (chunk(b"fmt ", &fmt(1, 1, 8000, 16)), chunk(b"data", &[1, 0, 2, 0]));
    // With the byte that fills a chunk of odd length.
    let list = chunk(b"LIST", b"INFOISFT\x03\0\0\0abc");
    assert_eq!(list.len() % 2, 0);
    let fact = chunk(b"fact", &[0; 12]);
    for order in [
        vec![&format, &data],
        vec![&list, &format, &list, &data, &list],
        vec![&data, &fact, &format],
        vec![&format, &fact, &list, &data],
    ] {
        let chunks: Vec<Vec<u8>> = order.into_iter().cloned().collect();
        assert_eq!(samples(&riff(&chunks)), [1, 2]);
    }
    // What follows the declared end is ignored, also if it looks like a chunk.
    let whole = riff(&[format.clone(), data.clone()]);
    assert_eq!(samples(&[&whole[..], &data, b"x"].concat()), [1, 2]);
    let twice = |chunks: &[Vec<u8>]| decode(&riff(chunks));
    let [format, data] = [format, data];
    assert_eq!(
        twice(&[format.clone(), format.clone(), data.clone()]),
        Err(WavError::Repeated { chunk: "fmt" })
    );
    assert_eq!(
        twice(&[format.clone(), data.clone(), data.clone()]),
        Err(WavError::Repeated { chunk: "data" })
    );
    assert_eq!(twice(&[data]), Err(WavError::Missing { chunk: "fmt" }));
    assert_eq!(twice(&[format]), Err(WavError::Missing { chunk: "data" }));
}

#[test]
fn cut_files_and_lengths_that_lie_are_refused() {
    let whole = file(1, 2, 44_100, 16, &[7; 400]);
    assert!(decode(&whole).is_ok());
    for length in 0..whole.len() {
        assert!(decode(&whole[..length]).is_err(), "{length} bytes");
    }
    let with = |at: usize, size: u32| {
        let mut changed = whole.clone();
        changed[at..at + 4].copy_from_slice(&size.to_le_bytes());
        decode(&changed)
    };
    let cut = |chunk: &str, declared: u32, found: u64| {
        Err(WavError::CutShort { chunk: chunk.into(), declared: declared.into(), found })
    };
    assert_eq!(with(4, 1000), cut("RIFF", 996, 432));
    assert_eq!(with(16, u32::MAX), cut("fmt", u32::MAX, 424));
    for size in [401, 404, 0x7FFF_FFFF, 0xFFFF_FFFE, u32::MAX] {
        assert_eq!(with(40, size), cut("data", size, 400));
    }
    assert!(matches!(with(40, 398), Err(WavError::Damaged { .. })), "half a sample");
    assert_eq!(decode(&file(1, 1, 8000, 16, &[])), Err(WavError::Empty));
    assert!(with(40, 0).is_err(), "the samples are no chunk");
    for size in [0, 3] {
        assert!(with(16, size).is_err());
    }
    // Programs that write into a pipe do not know the lengths.
    let mut piped = whole.clone();
    piped[4..8].fill(0xFF);
    piped[40..44].fill(0xFF);
    assert_eq!(decode(&piped), decode(&whole));
    piped[4..8].fill(0);
    piped[40..44].copy_from_slice(&400_u32.to_le_bytes());
    assert_eq!(decode(&piped), decode(&whole));
}

#[test]
fn what_is_outside_the_limits_is_refused_by_name() {
    let of =
        |tag, channels, rate, bits, bytes: usize| decode(&file(tag, channels, rate, bits, &vec![0; bytes]));
    for channels in [0, 3, 8, u16::MAX] {
        assert_eq!(of(1, channels, 8000, 16, 96), Err(WavError::Channels { found: channels }));
    }
    for rate in [0, 1, 7999, 192_001, u32::MAX] {
        assert_eq!(of(1, 1, rate, 16, 96), Err(WavError::Rate { found: rate }));
    }
    for (tag, bits) in [(1, 0), (1, 4), (1, 12), (1, 20), (1, 64), (1, u16::MAX), (3, 16), (3, 64)] {
        assert_eq!(of(tag, 1, 8000, bits, 96), Err(WavError::Bits { found: bits }));
    }
    for (tag, name) in [(2, "ADPCM"), (6, "A-law"), (7, "mu-law"), (0x55, "MP3"), (0x1234, "number 0x1234")] {
        assert_eq!(of(tag, 1, 8000, 16, 96), Err(WavError::Format { name: name.into() }));
    }
    let second = vec![0; 8000];
    assert!(Wav::decode(&file(1, 1, 8000, 8, &second), Duration::from_secs(1)).is_ok());
    let long = Wav::decode(&file(1, 1, 8000, 8, &[&second[..], &[0, 0]].concat()), Duration::from_secs(1));
    insta::assert_snapshot!(long.unwrap_err(), @"`duration` is 1.00025 s: it may be 1 s");
    // Fields that contradict each other: the bytes of a moment, and those of a second.
    for at in [32, 28] {
        let mut changed = file(1, 2, 8000, 16, &[0; 96]);
        changed[at] ^= 1;
        assert!(matches!(decode(&changed), Err(WavError::Damaged { .. })), "{at}");
    }
}

#[test]
fn other_files_are_no_wav_files() {
    for content in [
        &b""[..],
        b"RIFF",
        b"ID3\x04\0\0\0\0\0\0\0\0\0\0",
        b"\xFF\xFB\x90\x44\0\0\0\0\0\0\0\0\0\0",
        b"RIFX\0\0\0\x24WAVEfmt ",
        b"RF64\xFF\xFF\xFF\xFFWAVEds64",
        b"RIFF\x24\0\0\0AVI LIST",
        b"OggS\0\x02\0\0\0\0\0\0\0\0\0\0",
    ] {
        assert_eq!(decode(content), Err(WavError::NotWav), "{}", content.escape_ascii());
    }
    // An MP3 in the container of a WAV file.
    assert_eq!(
        decode(&file(0x55, 1, 44_100, 0, b"\xFF\xFB\x90\x44")),
        Err(WavError::Format { name: "MP3".into() })
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&content);
    }

    #[test]
    fn arbitrary_headers_never_panic(
        head in proptest::collection::vec(any::<u8>(), 0..60),
        tag in prop_oneof![Just(1_u16), Just(3), Just(0xFFFE), any::<u16>()],
        channels in prop_oneof![0_u16..4, any::<u16>()],
        rate in prop_oneof![Just(8000_u32), any::<u32>()],
        bits in prop_oneof![Just(8_u16), Just(16), Just(24), Just(32), any::<u16>()],
        sizes in any::<(u32, u32)>(),
        data in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let format = [fmt(tag, channels, rate, bits), head].concat();
        let file = riff(&[chunk(b"fmt ", &format), chunk(b"data", &data)]);
        let _ = decode(&file);
        let mut changed = file;
        changed[4..8].copy_from_slice(&sizes.0.to_le_bytes());
        changed[16..20].copy_from_slice(&sizes.1.to_le_bytes());
        let _ = decode(&changed);
    }

    #[test]
    fn a_canonical_file_has_the_same_samples(
        samples in proptest::collection::vec(any::<i16>(), 1..100),
        channels in 1_u16..=2,
        rate in LOWEST_RATE..=HIGHEST_RATE,
    ) {
        let samples = samples.repeat(channels.into());
        let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        let wav = decode(&file(1, channels, rate, 16, &data)).unwrap();
        prop_assert_eq!(wav.samples(), &samples);
        let canonical = wav.to_bytes().unwrap();
        prop_assert_eq!(canonical.len(), 44 + data.len());
        prop_assert_eq!(&decode(&canonical).unwrap(), &wav);
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), &canonical).unwrap();
        prop_assert_eq!(&Wav::read(path.path(), 10.0).unwrap(), &wav);
    }
}
