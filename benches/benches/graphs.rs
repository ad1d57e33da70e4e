//! The three graphs at real sizes: a step of the 1.3B shape, the decoder at 832x480's half, the umT5-XXL encoder.

use benches::shapes::{Decode, Step, Text};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engines::{OpenOptions, WeightMemory};

/// Layers of the timed step; every layer of the 30 costs the same.
const LAYERS: usize = 4;
/// Every core, weights as `generate` holds them where they fit.
const OPTIONS: OpenOptions = OpenOptions { threads: None, weights: WeightMemory::Prepacked };

fn step(criterion: &mut Criterion) {
    let mut step = Step::new(LAYERS, [5, 15, 26], &OPTIONS).expect("a step that runs");
    let mut group = criterion.benchmark_group("step");
    // Operations as elements: criterion then prints operations per second.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number of operations"
    )]
    group.throughput(Throughput::Elements(step.flops as u64)).sample_size(10);
    group.bench_function("1.3b/4-layers/1950-tokens", |bencher| bencher.iter(|| step.run().expect("a run")));
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut decode = Decode::new([2, 30, 52], &OPTIONS).expect("a decoder that runs");
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10);
    group.bench_function("first/30x52", |bencher| {
        bencher.iter(|| decode.run_first().expect("a run"));
    });
    let state = decode.run_first().expect("a run");
    group.bench_function("next/30x52", |bencher| bencher.iter(|| decode.run_next(&state).expect("a run")));
    group.finish();
}

fn text(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("text");
    group.sample_size(10);
    for tokens in [126, 512] {
        let mut text = Text::new(2, tokens, &OPTIONS).expect("an encoder that runs");
        group.bench_function(format!("umt5-xxl/2-layers/{tokens}-tokens"), |bencher| {
            bencher.iter(|| text.run().expect("a run"));
        });
    }
    group.finish();
}

criterion_group!(graphs, step, decode, text);
criterion_main!(graphs);
