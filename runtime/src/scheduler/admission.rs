//! Admission: which of the jobs that wait join a wave, and when a wave begins.

use super::event::Outcome;
use super::machine::Scheduler;
use super::progress::Progress;
use super::session::ModelNumber;
use super::settings::{Order, Settings};
use super::types::JobId;
use super::wave::{Kind, Wave};

/// Live waves of one kind: one that runs, and the next one, which may encode and use sessions that are open.
const LIVE_WAVES: usize = 2;

impl Scheduler {
    /// Puts jobs that wait into waves.
    pub(super) fn admit(&mut self) {
        let settings = &self.state.settings;
        let order = settings.order;
        let overdue = order == Order::Waves
            && self.state.jobs.values().any(|job| {
                Kind::of(job.request.priority, order) == Kind::Clips && job.is_overdue(self.state.now)
            });
        let previews_wait =
            overdue && (self.live(Kind::Previews) > 0 || self.clip_units < settings.bounds.overdue_units);
        for kind in [Kind::Previews, Kind::Clips] {
            if kind == Kind::Previews && previews_wait {
                continue;
            }
            // While a clip is past its deadline, previews have one group at a time.
            let live = match (order, kind) {
                (Order::FirstCome, _) => 1,
                (Order::Waves, Kind::Previews) if overdue => 1,
                (Order::Waves, Kind::Previews | Kind::Clips) => LIVE_WAVES,
            };
            if !self.takes_jobs(kind, live) {
                continue;
            }
            for id in self.queue(kind) {
                let is_done = self.admit_job(id, kind, live);
                let is_overdue = self.state.jobs.get(&id).is_some_and(|job| job.is_overdue(self.state.now));
                // Nothing overtakes a job that is past its deadline.
                if !is_done && (is_overdue || order == Order::FirstCome) {
                    break;
                }
            }
        }
    }

    /// The jobs of a kind that wait, in the order in which they are admitted.
    fn queue(&self, kind: Kind) -> Vec<JobId> {
        let (order, now) = (self.state.settings.order, self.state.now);
        let waiting = self.waiting.iter().filter_map(|id| self.state.jobs.get(id));
        let mut queue: Vec<&Progress> =
            waiting.filter(|job| Kind::of(job.request.priority, order) == kind).collect();
        match order {
            Order::Waves => queue.sort_by_key(|job| {
                let overdue = job.is_overdue(now);
                let deadline = overdue.then_some(job.deadline);
                (!overdue, deadline, job.request.priority, job.order)
            }),
            Order::FirstCome => queue.sort_by_key(|job| job.order),
        }
        queue.into_iter().map(Progress::id).collect()
    }

    /// Puts a job into the newest wave of its kind and model if that is open, or into a new one if fewer than `live` of
    /// the kind exist. A job that was measured to fit no more is ended. Returns false if the job has to wait.
    fn admit_job(&mut self, id: JobId, kind: Kind, live: usize) -> bool {
        let Some(job) = self.state.jobs.get(&id) else { return true };
        if let Some((needed, budget)) = self.state.does_not_fit(job, &[]) {
            self.finish(id, Outcome::DoesNotFit { needed, budget });
            return true;
        }
        let others: Vec<&Progress> = self.state.admitted().collect();
        if self.state.does_not_fit(job, &others).is_some() {
            return false;
        }
        let model = job.model;
        let position = match self.open_wave(kind, model) {
            Some((position, wave)) if wave.suits(job) => position,
            _ if self.live(kind) < live => self.begin(kind, model),
            _ => return false,
        };
        if let Some(wave) = self.state.waves.get_mut(position) {
            wave.join(id);
        }
        self.waiting.retain(|waiting| *waiting != id);
        true
    }

    /// The newest wave of a kind and model, if it takes new jobs, and its position.
    fn open_wave(&self, kind: Kind, model: ModelNumber) -> Option<(usize, &Wave)> {
        let mut waves = self.state.waves.iter().enumerate();
        let newest = waves.rfind(|(_, wave)| wave.kind == kind && wave.model == model)?;
        self.is_open(newest.1).then_some(newest)
    }

    fn is_open(&self, wave: &Wave) -> bool {
        let Settings { order, bounds, .. } = &self.state.settings;
        let most = match order {
            Order::Waves => bounds.wave_jobs,
            Order::FirstCome => 1,
        };
        wave.is_open(self.state.now, bounds, most)
    }

    /// The number of live waves of a kind.
    pub(super) fn live(&self, kind: Kind) -> usize {
        self.state.waves.iter().filter(|wave| wave.kind == kind).count()
    }

    /// Returns true if a job of the kind could be admitted, unless memory is short.
    fn takes_jobs(&self, kind: Kind, live: usize) -> bool {
        self.live(kind) < live || self.state.waves.iter().any(|wave| wave.kind == kind && self.is_open(wave))
    }

    /// Begins a wave, and returns its position.
    fn begin(&mut self, kind: Kind, model: ModelNumber) -> usize {
        match kind {
            Kind::Previews => self.counts.preview_groups += 1,
            Kind::Clips => self.counts.waves += 1,
        }
        let position = self.state.waves.partition_point(|wave| wave.kind <= kind);
        self.state.waves.insert(position, Wave::new(kind, model));
        position
    }
}
