//! Measures queues of clips on this machine, and prints the simulated ones of A14B.
//!
//! `bench-queue wave [ROUNDS]` makes three clips of mini with room for one expert, in a wave and one after another.
//! `bench-queue overhead [ROUNDS]` makes three clips in a plain loop, through the driver, and through the driver with job
//! folders; and in a loop with an output each, and through a store with its owner. Kinds alternate in every round; the table has the median of the wall times, and its ratio to the first kind.
//! `bench-queue simulate` prints clips per hour with the shipped costs.

use benches::queue::{COSTS, Clip, MiniQueue, Room, simulated};
use benches::queue_store;
use bundle::Cancel;
use bundle::geometry::PixelSize;
use runtime::job;
use runtime::pipeline::Pipeline;
use runtime::plan::GenerationPlan;
use runtime::scheduler::Order;
use std::error::Error;
use std::time::{Duration, Instant};

const SIZE: PixelSize = PixelSize { width: 224, height: 128 };
const FRAMES: usize = 17;
const CLIPS: u64 = 3;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let rounds = |given: &[&str]| given.first().map_or(Ok(ROUNDS), |rounds| rounds.parse());
    match words[..] {
        ["wave", ref rest @ ..] if rest.len() < 2 => wave(rounds(rest)?),
        ["overhead", ref rest @ ..] if rest.len() < 2 => overhead(rounds(rest)?),
        ["simulate"] => simulate(),
        _ => Err("use `wave [ROUNDS]`, `overhead [ROUNDS]` or `simulate`".into()),
    }
}

fn clips() -> Vec<Clip> {
    (0..CLIPS).map(|seed| Clip::new(SIZE, FRAMES, seed)).collect()
}

fn wave(rounds: usize) -> Result<(), Box<dyn Error>> {
    let (queue, clips) = (MiniQueue::open()?, clips());
    let of_order = |order: Order| {
        let queue = &queue;
        let clips = &clips;
        move || Ok(queue.run(clips, order, Room::OneExpert, None)?.swaps)
    };
    let (mut first_come, mut waves) = (of_order(Order::FirstCome), of_order(Order::Waves));
    table(rounds, "swaps", &mut [("one after another", &mut first_come), ("in a wave", &mut waves)])
}

fn overhead(rounds: usize) -> Result<(), Box<dyn Error>> {
    let (queue, clips) = (MiniQueue::open()?, clips());
    let mut plain = || {
        queue.model().sessions().close_idle();
        let mut pipeline = Pipeline::new(queue.model());
        for clip in &clips {
            let plan = GenerationPlan::new(queue.model().manifest(), &clip.request)?;
            job::generate(&mut pipeline, &plan, &Cancel::new(), &mut |_| Ok(()))?;
        }
        Ok(0)
    };
    let mut driven = || Ok(queue.run(&clips, Order::Waves, Room::BothExperts, None)?.swaps);
    let mut stored = || {
        let folder = tempfile::tempdir()?;
        Ok(queue.run(&clips, Order::Waves, Room::BothExperts, Some(folder.path()))?.swaps)
    };
    let kinds: &mut [Kind<'_>] =
        &mut [("a loop", &mut plain), ("driver", &mut driven), ("driver and folders", &mut stored)];
    table(rounds, "swaps", kinds)?;
    let mut written = || {
        let folder = tempfile::tempdir()?;
        queue_store::plain(&queue, &clips, folder.path()).map(|()| 0)
    };
    let mut queued = || {
        let folder = tempfile::tempdir()?;
        queue_store::stored(&queue, &clips, folder.path()).map(|()| 0)
    };
    table(rounds, "", &mut [("a loop with outputs", &mut written), ("a store", &mut queued)])
}

/// A name, and what is timed. It returns a number for the table.
type Kind<'a> = (&'static str, &'a mut dyn FnMut() -> Result<u64, Box<dyn Error>>);

/// Times kinds of work in turn, and prints the medians.
fn table(rounds: usize, count: &str, kinds: &mut [Kind<'_>]) -> Result<(), Box<dyn Error>> {
    if rounds == 0 {
        return Err("give at least 1 round".into());
    }
    let mut times = vec![Vec::new(); kinds.len()];
    let mut counts = vec![0; kinds.len()];
    // The first round starts ONNX Runtime, and is not counted.
    for round in 0..=rounds {
        for (index, (_, work)) in kinds.iter_mut().enumerate() {
            let began = Instant::now();
            counts[index] = work()?;
            if round > 0 {
                times[index].push(began.elapsed());
            }
        }
    }
    let medians: Vec<Duration> = times.iter_mut().map(|times| median(times)).collect();
    println!("{:20} {count:>6} {:>10} {:>8}", "", "seconds", "ratio");
    for ((name, _), (count, time)) in kinds.iter().zip(counts.iter().zip(&medians)) {
        let ratio = time.as_secs_f64() / medians[0].as_secs_f64();
        println!("{name:20} {count:>6} {:>10.3} {ratio:>8.3}", time.as_secs_f64());
    }
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn simulate() -> Result<(), Box<dyn Error>> {
    println!("{:8} {:>9} {:>12} {:>6} {:>15}", "machine", "previews", "order", "swaps", "clips per hour");
    for (machine, costs) in COSTS {
        for previews in [false, true] {
            for order in Order::ALL {
                let summary = simulated(costs, order, previews)?;
                let (shown, swaps) = (if previews { "yes" } else { "no" }, summary.counts.swaps);
                println!(
                    "{machine:8} {shown:>9} {:>12} {swaps:>6} {:>15.2}",
                    order.to_string(),
                    summary.clips_per_hour
                );
            }
        }
    }
    Ok(())
}
