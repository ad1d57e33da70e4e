//! Times the three graphs at real sizes: a step of the 1.3B shape, the decoder at 416x240, the umT5-XXL encoder.

use benches::RandomModel;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engines::Cancel;
use quality::bench::shape::{Shape, Subject, text_encoder};
use quality::bench::workload::{Decode, Step, Text, Workload};

/// The number of layers of the timed step; each of the 30 layers costs the same.
const LAYERS: usize = 4;

/// Counts operations as elements, so that criterion prints operations per second.
fn operations(flops: f64) -> Throughput {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number of operations"
    )]
    Throughput::Elements(flops as u64)
}

fn once(workload: &mut dyn Workload) {
    workload.run(&Cancel::new(), &mut || ()).expect("a run");
}

fn step(criterion: &mut Criterion) {
    let random = RandomModel::of_step(Shape::Small.denoiser(Some(LAYERS)));
    let mut step = Step::open(&random.model, [5, 15, 26]).expect("a step that runs");
    let mut group = criterion.benchmark_group("step");
    group.throughput(operations(step.flops())).sample_size(10);
    group.bench_function("1.3b/4-layers/1950-tokens", |bencher| bencher.iter(|| once(&mut step)));
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let random = RandomModel::new(&Subject::Decode);
    let mut decode = Decode::open(&random.model, [2, 30, 52]).expect("a decoder that runs");
    let cancel = Cancel::new();
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10);
    group.bench_function("first/30x52", |bencher| {
        bencher.iter(|| decode.run_first(&cancel).expect("a run"));
    });
    let caches = decode.run_first(&cancel).expect("a run");
    group.bench_function("next/30x52", |bencher| {
        bencher.iter(|| decode.run_next(&caches, &cancel).expect("a run"));
    });
    group.finish();
}

fn text(criterion: &mut Criterion) {
    let random = RandomModel::new(&Subject::Text(text_encoder(2)));
    let mut group = criterion.benchmark_group("text");
    group.sample_size(10);
    for tokens in [126, 512] {
        let mut text = Text::open(&random.model, tokens).expect("an encoder that runs");
        group.throughput(operations(text.flops()));
        group.bench_function(format!("umt5-xxl/2-layers/{tokens}-tokens"), |bencher| {
            bencher.iter(|| once(&mut text));
        });
    }
    group.finish();
}

criterion_group!(graphs, step, decode, text);
criterion_main!(graphs);
