//! Dispatch: turns what a device chose into a command.

use super::choice::{self, Choice};
use super::device::Devices;
use super::event::Command;
use super::machine::Scheduler;
use super::session::{Session, Stage};
use super::state::{Activity, State};
use super::types::JobId;
use super::wave::Kind;

impl Scheduler {
    /// Gives every idle device something to do. Devices choose in the order of the settings, so that the first device of
    /// a pair to come waits for the other one.
    pub(super) fn dispatch(&mut self) {
        for index in 0..self.state.devices.len() {
            let Some(choice) = self.choice(index) else { continue };
            self.start(index, &choice);
        }
    }

    /// What a device does next; `None` if that is nothing, or a unit on a pair whose other device does something else.
    fn choice(&self, index: usize) -> Option<Choice> {
        let device = self.state.devices.get(index)?;
        let choice = choice::choose(&self.state, device)?;
        if let Some(partner) = choice.partner {
            let other = choice::choose(&self.state, self.state.device(partner)?)?;
            if other.job != choice.job || other.partner != Some(device.name) {
                return None;
            }
        }
        Some(choice)
    }

    fn start(&mut self, index: usize, choice: &Choice) {
        let Choice { job: id, unit, close, .. } = choice;
        let Some(job) = self.state.jobs.get(id) else { return };
        let session = job.session(*unit);
        let decode = job.decoding.then_some(job.order);
        let Some(devices) = job.devices(session.stage) else { return };
        if let Some(expert) = session.stage.expert() {
            let Some(position) = self.state.waves.iter().position(|wave| wave.members.contains(id)) else {
                return;
            };
            let (earlier, later) = self.state.waves.split_at_mut(position);
            let Some(wave) = later.first_mut() else { return };
            wave.use_expert(expert);
            // What an earlier wave took from here on could bring an expert back that this one has replaced.
            earlier.iter_mut().filter(|other| other.kind == wave.kind).for_each(super::wave::Wave::close);
        }
        let Some(device) = self.state.devices.get_mut(index) else { return };
        device.room_for = decode.filter(|_| !close.is_empty());
        if let Some(closed) = close.first() {
            device.activity = Activity::Evicting(*closed);
            if closed.is_expert() {
                device.left.insert(*closed);
            }
            self.commands.push(Command::Evict { device: device.name, session: *closed });
        } else if device.is_open(session) {
            self.run(choice, session, devices);
        } else {
            self.load(index, *id, session);
        }
    }

    fn load(&mut self, index: usize, id: JobId, session: Session) {
        let State { jobs, devices, .. } = &mut self.state;
        let (Some(device), Some(job)) = (devices.get_mut(index), jobs.get(&id)) else { return };
        let need = State::need(device, job, session);
        device.resident.insert(session, need);
        device.activity = Activity::Loading(session, job.order);
        let swap = device.would_swap(session, &[]);
        if session.is_expert() {
            device.left.clear();
        }
        self.counts.loads += 1;
        self.counts.swaps += u64::from(swap);
        self.commands.push(Command::Load { device: device.name, session, job: id, swap });
    }

    /// Runs a unit on all devices of its session.
    fn run(&mut self, choice: &Choice, session: Session, on: Devices) {
        let Choice { job: id, unit, .. } = choice;
        let State { jobs, waves, devices, now, .. } = &mut self.state;
        let Some(job) = jobs.get_mut(id) else { return };
        let Some(wave) = waves.iter_mut().find(|wave| wave.members.contains(id)) else { return };
        for device in devices.iter_mut().filter(|device| on.contains(device.name)) {
            let need = State::need(device, job, session);
            let held = device.resident.entry(session).or_default();
            *held = (*held).max(need);
            device.activity = Activity::Running(*id);
        }
        if session.is_expert() {
            wave.start_step(*now);
        }
        if wave.kind == Kind::Clips {
            self.clip_units = self.clip_units.saturating_add(1);
        }
        job.running = true;
        job.decoding |= session.stage == Stage::Decoder;
        job.last_device = on.first();
        let (device, pair) = (on.first(), on.second());
        self.commands.push(Command::Run { device, pair, job: *id, unit: *unit });
    }
}
