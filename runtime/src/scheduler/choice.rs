//! What a device does next.
//!
//! Waves are asked in order. Each offers, in turn: a unit whose session is open (or any, if all sessions stay open, so
//! that jobs come one after another); a unit whose session can be opened
//! without closing one that a wave needs; and, if no earlier wave has work on the device, a unit of its earliest stage
//! there, for which any other session may be closed. The last rule is what makes experts change once per wave: while
//! a job of the wave has steps of an expert left, no later stage takes its place.
//!
//! A unit on a pair of devices is chosen by each of them, and runs when both have chosen it. Each opens the session on
//! its own. While the other device is busy, the one that comes first in the settings waits for it, and the other one does
//! something else; for a preview, both wait. All devices rank the units that are ready on both devices of their pair in the
//! same order, so that of any devices that wait for each other some can go on.

use super::device::{DeviceName, Devices};
use super::progress::Progress;
use super::session::{Session, Unit};
use super::state::{Activity, DeviceState, State};
use super::types::JobId;
use super::wave::{Kind, Wave};
use bundle::routing::ExpertIndex;
use std::cmp::Reverse;

/// The unit that a device works for next.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) job: JobId,
    pub(super) unit: Unit,
    /// The sessions to close first.
    pub(super) close: Vec<Session>,
    /// If the unit can run on a pair: the other device.
    pub(super) partner: Option<DeviceName>,
}

/// A unit that a device could work for.
struct Candidate<'a> {
    job: &'a Progress,
    unit: Unit,
    session: Session,
    close: Vec<Session>,
    /// If the unit can run on a pair: the other device.
    partner: Option<DeviceName>,
    /// True if this device is ready for the unit, but does not wait for the other one.
    is_held_up: bool,
}

impl<'a> Candidate<'a> {
    /// `None` if there is no room for its session.
    fn new(
        state: &State,
        device: &DeviceState,
        position: usize,
        job: &'a Progress,
        unit: Unit,
    ) -> Option<Self> {
        let session = job.session(unit);
        let close = state.room(device, job, session)?;
        let other = job.devices(session.stage)?.partner(device.name);
        let partner = other.filter(|_| close.is_empty() && device.is_open(session));
        let mut candidate = Self { job, unit, session, close, partner, is_held_up: false };
        if let Some(other) = partner.and_then(|name| state.device(name)) {
            candidate.is_held_up = !waits_for(state, device, other, position, &candidate);
        }
        Some(candidate)
    }

    fn choice(&self) -> Choice {
        let Self { job, unit, close, partner, .. } = self;
        Choice { job: job.id(), unit: *unit, close: close.clone(), partner: *partner }
    }
}

/// Chooses the next unit of an idle device; `None` if there is nothing to do.
pub(super) fn choose(state: &State, device: &DeviceState) -> Option<Choice> {
    if device.activity != Activity::Idle {
        return None;
    }
    let of_waves = || (0..state.waves.len()).find_map(|position| choose_in(state, device, position));
    // Nothing takes the room that was made for a decode in progress.
    let begun = device.room_for.and_then(|arrival| started_decode(state, device, Some(arrival)));
    begun.or_else(of_waves).or_else(|| started_decode(state, device, None))
}

fn choose_in(state: &State, device: &DeviceState, position: usize) -> Option<Choice> {
    let wave = state.waves.get(position)?;
    let ready = ready_units(state, wave, device).into_iter();
    let ready = ready.filter_map(|(job, unit)| Candidate::new(state, device, position, job, unit));
    let ready: Vec<Candidate<'_>> = ready.collect();
    let offer = |accepts: &dyn Fn(&Candidate<'_>) -> bool| {
        ready.iter().find(|candidate| !candidate.is_held_up && accepts(candidate)).map(Candidate::choice)
    };
    let closes_unneeded = |candidate: &Candidate<'_>| {
        candidate.close.iter().all(|session| state.next_use(device.name, *session).is_none())
    };
    let earliest = state.stages(wave, device.name).min();
    // A session on a pair may have to wait for the other device. It is not opened where another stage of the wave, which
    // comes first, closes it again.
    let stays = |candidate: &Candidate<'_>| {
        let on_pair = candidate.job.devices(candidate.session.stage).is_some_and(Devices::is_pair);
        let alone = std::slice::from_ref(wave);
        !on_pair || earliest == Some(candidate.session) || state.stay_open(device, alone)
    };
    // Where all sessions stay open, opening one causes no swap, and the order of the jobs decides alone.
    let all_stay = state.waves.get(..=position).is_some_and(|waves| state.stay_open(device, waves));
    let open =
        offer(&|candidate| (all_stay || device.is_open(candidate.session)) && closes_unneeded(candidate));
    let opened = || {
        offer(&|candidate| {
            let is_closed = !device.is_open(candidate.session);
            is_closed
                && closes_unneeded(candidate)
                && may_open(state, device, position, candidate)
                && stays(candidate)
        })
    };
    // A unit that is held up keeps its session, which must not be opened again in another size before it runs.
    let is_kept = || ready.iter().any(|unit| unit.is_held_up && Some(unit.session) == earliest);
    let forced = || offer(&|candidate| is_forced(state, device, position, candidate.session) && !is_kept());
    open.or_else(opened).or_else(forced)
}

/// Returns true if any other session may be closed for a session of a wave: no earlier wave has work on the device, and
/// it is the earliest that the wave needs there.
fn is_forced(state: &State, device: &DeviceState, position: usize, session: Session) -> bool {
    let mut earlier = state.waves.iter().take(position);
    let leads = earlier.all(|wave| state.stages(wave, device.name).next().is_none());
    let wave = state.waves.get(position);
    leads && wave.and_then(|wave| state.stages(wave, device.name).min()) == Some(session)
}

/// Returns true if a device that can run its part of a unit on a pair keeps itself free for it.
fn waits_for(
    state: &State,
    device: &DeviceState,
    partner: &DeviceState,
    position: usize,
    Candidate { job, session, .. }: &Candidate<'_>,
) -> bool {
    let Some(wave) = state.waves.get(position) else { return false };
    let is_preview = wave.kind == Kind::Previews;
    let Some(close) = state.room(partner, job, *session) else { return false };
    if partner.is_open(*session) {
        let is_ready = close.is_empty() && is_in_turn(state, wave, partner, *session);
        let mut names = state.devices.iter().map(|device| device.name);
        let first = names.find(|name| [device.name, partner.name].contains(name));
        let is_free = partner.activity == Activity::Idle;
        return is_ready && (is_preview || is_free || first == Some(device.name));
    }
    // The other device opens the session, or does so as soon as it is idle.
    let is_coming = matches!(partner.activity, Activity::Loading(loading, _) if loading == *session);
    is_preview && (is_coming || is_forced(state, partner, position, *session))
}

/// The units of a wave that a device can run: those of jobs past their deadline first, then by priority; of each, the most
/// advanced stage first, decodes in progress before others, then in the order of the wave.
fn ready_units<'a>(state: &'a State, wave: &'a Wave, device: &DeviceState) -> Vec<(&'a Progress, Unit)> {
    let mut ready: Vec<(&Progress, Unit)> = state
        .members(wave)
        .filter(|job| !job.running)
        .filter_map(|job| Some((job, job.next()?)))
        .filter(|(job, unit)| job.uses(unit.stage(), device.name))
        .collect();
    if !state.stay_open(device, std::slice::from_ref(wave)) {
        let turn = earliest_expert(state, wave, device);
        ready.retain(|(_, unit)| unit.stage().expert().is_none_or(|expert| Some(expert) == turn));
    }
    // The sort is stable.
    ready.sort_by_key(|(job, unit)| {
        let deadline = job.is_overdue(state.now).then_some(job.deadline);
        (deadline.is_none(), deadline, job.request.priority, Reverse(unit.stage()), !job.decoding)
    });
    ready
}

/// Returns true if a wave may use a session on a device at this time. Unless all its sessions stay open together, its
/// experts come one after another.
fn is_in_turn(state: &State, wave: &Wave, device: &DeviceState, session: Session) -> bool {
    let Some(expert) = session.stage.expert() else { return true };
    earliest_expert(state, wave, device) == Some(expert)
        || state.stay_open(device, std::slice::from_ref(wave))
}

/// The first expert on a device that a job of the wave still needs.
fn earliest_expert(state: &State, wave: &Wave, device: &DeviceState) -> Option<ExpertIndex> {
    state.stages(wave, device.name).filter_map(|session| session.stage.expert()).min()
}

/// Returns true if opening a session for a wave, after closing some, causes no swap beyond those of whole waves. The
/// first wave that needs an expert on the device opens what it needs, in turn or, if its sessions stay open together, in
/// any order. A later one opens an expert before that only if all stay open together, and if that is no swap or the
/// first wave needs the same expert next.
fn may_open(state: &State, device: &DeviceState, position: usize, candidate: &Candidate<'_>) -> bool {
    let Candidate { session, close, .. } = candidate;
    if !session.is_expert() {
        return true;
    }
    let Some(waves) = state.waves.get(..=position) else { return false };
    let mut needs = waves.iter().enumerate();
    let lead = needs.find_map(|(at, wave)| Some((at, wave, earliest_expert(state, wave, device)?)));
    let Some((at, lead, next)) = lead else { return true };
    let is_next = lead.model == session.model && session.stage.expert() == Some(next);
    let together = || state.stay_open(device, waves);
    if at == position {
        return is_next || together();
    }
    (is_next || !device.would_swap(*session, close)) && together()
}

/// A decode in progress, whose caches may be what leaves no room for the waves: any, or that of one arrival.
fn started_decode(state: &State, device: &DeviceState, of: Option<u64>) -> Option<Choice> {
    let ready = state.waves.iter().flat_map(|wave| ready_units(state, wave, device));
    let mut decodes = ready.filter(|(job, _)| job.decoding && of.is_none_or(|of| of == job.order));
    decodes.find_map(|(job, unit)| {
        let close = state.room(device, job, job.session(unit))?;
        Some(Choice { job: job.id(), unit, close, partner: None })
    })
}
