//! Clips per second of queues: in waves and one after another, with room for one expert and for both, with and without
//! previews that arrive meanwhile.
//!
//! `queue/mini-…` makes clips on ONNX Runtime; its throughput counts all clips, previews too. `queue/a14b-…` is the time of
//! the scheduler alone, with the shipped costs of A14B, and prints the clips per hour of the simulated machine.

use benches::queue::{COSTS, Clip, MiniQueue, Room, simulated};
use bundle::geometry::PixelSize;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use runtime::scheduler::Order;

const SIZE: PixelSize = PixelSize { width: 112, height: 64 };
const FRAMES: usize = 17;

fn name(order: Order, previews: bool) -> String {
    format!("{order}{}", if previews { "-with-previews" } else { "" })
}

fn mini(criterion: &mut Criterion) {
    let queue = MiniQueue::open().unwrap_or_else(|error| panic!("{error}"));
    for room in [Room::OneExpert, Room::BothExperts] {
        let mut group = criterion.benchmark_group(format!("queue/mini-{room}"));
        group.sample_size(10);
        for previews in [false, true] {
            let mut clips: Vec<Clip> = (0..3).map(|seed| Clip::new(SIZE, FRAMES, seed)).collect();
            if previews {
                clips.extend([6, 14].map(|after| Clip::preview(SIZE, 9, after)));
            }
            group.throughput(Throughput::Elements(clips.len() as u64));
            for order in Order::ALL {
                group.bench_function(name(order, previews), |bencher| {
                    bencher.iter(|| {
                        queue.run(&clips, order, room, None).unwrap_or_else(|error| panic!("{error}"))
                    });
                });
            }
        }
        group.finish();
    }
}

/// Times the scheduler: a whole simulation. The clips per hour of the simulated machine are printed.
fn a14b(criterion: &mut Criterion) {
    for (machine, costs) in COSTS {
        let mut group = criterion.benchmark_group(format!("queue/a14b-{machine}"));
        for previews in [false, true] {
            for order in Order::ALL {
                let run = || simulated(costs, order, previews).unwrap_or_else(|error| panic!("{error}"));
                let (summary, name) = (run(), name(order, previews));
                println!("queue/a14b-{machine}/{name}: {:.2} clips per hour", summary.clips_per_hour);
                group.bench_function(name, |bencher| bencher.iter(run));
            }
        }
        group.finish();
    }
}

criterion_group!(benches, mini, a14b);
criterion_main!(benches);
