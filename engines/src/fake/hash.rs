//! A hash that is the same on every machine and in every version.

/// Mixes words into 64 bits, with the steps of SplitMix64. Not cryptographic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixer(u64);

impl Mixer {
    pub(super) fn new(seed: u64) -> Self {
        Self(mixed(seed))
    }

    pub(super) fn add(&mut self, word: u64) {
        self.0 = mixed(self.0 ^ word);
    }

    /// Adds a text and its length.
    pub(super) fn add_text(&mut self, text: &str) {
        self.add(text.len() as u64);
        text.bytes().for_each(|byte| self.add(u64::from(byte)));
    }

    /// The 64 bits for an index.
    pub(super) fn at(self, index: u64) -> u64 {
        mixed(self.0 ^ mixed(index))
    }
}

/// Converts 64 bits to a number that is uniform in 0..1.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64")]
pub(super) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn mixed(bits: u64) -> u64 {
    let z = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
