//! Who does the tasks of an operator. The kernels start no threads of their own.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that share the tasks of one operator.
///
/// The result of every operator is the same, bit for bit, whoever does which task in which order.
pub trait Workers: Sync {
    /// Calls `task` once for each number below `tasks`, on any thread and in any order, and returns when all are done.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// Everything on the calling thread.
#[derive(Debug, Clone, Copy)]
pub struct Serial;

impl Workers for Serial {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

/// Threads that are started for each operator: for tests and measurements.
#[derive(Debug, Clone, Copy)]
pub struct Threads(pub NonZeroUsize);

impl Workers for Threads {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let counter = TaskCounter::new(tasks);
        std::thread::scope(|scope| {
            for _ in 1..self.0.get() {
                scope.spawn(|| counter.work(task));
            }
            counter.work(task);
        });
    }
}

/// Hands out each task once, to whichever thread asks first: a fixed split would wait for the slowest thread.
#[derive(Debug)]
pub struct TaskCounter {
    next: AtomicUsize,
    tasks: usize,
}

impl TaskCounter {
    /// For tasks 0 to `tasks - 1`.
    pub fn new(tasks: usize) -> Self {
        Self { next: AtomicUsize::new(0), tasks }
    }

    /// Does tasks until there are none left; every thread calls it once.
    pub fn work(&self, task: &(dyn Fn(usize) + Sync)) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.tasks {
                return;
            }
            task(index);
        }
    }
}
