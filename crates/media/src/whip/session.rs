//! A WebRTC session on its own thread, because ICE and DTLS must continue between frames.

use super::WhipError;
use super::signalling::Endpoint;
use bundle::Cancel;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use str0m::change::SdpAnswer;
use str0m::format::PayloadParams;
use str0m::media::{Direction, Frequency, MediaKind, MediaTime, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcError};

/// The longest time from the answer of the server to a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The interval at which the queue of frames is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The interval at which a wait checks whether the output is closed.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The time for retransmissions after the last frame.
const LINGER: Duration = Duration::from_millis(300);
/// The longest time to end a session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Unanswered STUN requests, at most a second apart, after which the connection counts as lost.
const STUN_RETRANSMITS: usize = 6;

/// RTP payload types, retransmission payload types and `profile-level-id`s of Constrained Baseline and Baseline at
/// level 3.1, which every WebRTC peer decodes.
const PROFILES: [(u8, u8, u32); 2] = [(96, 97, 0x42_e01f), (98, 99, 0x42_001f)];

/// The timestamp of a frame, and the frame in Annex B.
type Frame = (Duration, Arc<[u8]>);

/// A session that sends frames when they are due.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<SessionState>,
    closing: Cancel,
    /// `None` once it is joined.
    thread: Option<JoinHandle<()>>,
    /// The timestamp of the first frame.
    first: Option<Duration>,
}

#[derive(Debug, Default)]
struct SessionState {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    connected: Option<Instant>,
    queue: VecDeque<Frame>,
    /// True after the last frame.
    ended: bool,
    /// The result of the session, once its thread has ended.
    result: Option<Result<(), WhipError>>,
}

impl SessionState {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single assignment, so the state is valid even after a panic in another thread.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Session {
    /// Starts a session without waiting for the answer of the endpoint.
    pub(super) fn start(endpoint: Endpoint, closing: &Cancel) -> io::Result<Self> {
        let shared = Arc::new(SessionState::default());
        let thread_state = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("whip".into()).spawn(move || {
            let outcome = run_session(&endpoint, &thread_state);
            thread_state.update(|state| state.result = Some(outcome));
        })?;
        Ok(Self { shared, closing: closing.clone(), thread: Some(thread), first: None })
    }

    /// Waits until a frame is due and queues it. It is due as long after the connection as its timestamp is after the
    /// first.
    pub(super) fn send(&mut self, shown: Duration, data: Arc<[u8]>) -> Result<(), WhipError> {
        let after = shown.saturating_sub(*self.first.get_or_insert(shown));
        let mut state = self.shared.lock();
        loop {
            if let Some(result) = &state.result {
                return Err(result.clone().err().unwrap_or(WhipError::Ended));
            }
            if self.closing.is_cancelled() {
                return Err(WhipError::Ended);
            }
            let left = state.connected.map(|at| (at + after).saturating_duration_since(Instant::now()));
            let wait = match left {
                Some(Duration::ZERO) => break,
                Some(left) => left,
                // Without a connection the thread ends with an error.
                None => CHECK_INTERVAL,
            };
            let wait = wait.min(CHECK_INTERVAL);
            state = self.shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.queue.push_back((after, data));
        Ok(())
    }

    /// Ends the session after all frames are sent.
    pub(super) fn finish(&mut self) -> Result<(), WhipError> {
        self.shared.update(|state| state.ended = true);
        let is_running = |state: &mut State| state.result.is_none();
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), CLOSE_TIMEOUT, is_running);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.result.clone().unwrap_or(Ok(()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.update(|state| {
            state.queue.clear();
            state.ended = true;
        });
        let is_running = |state: &mut State| state.result.is_none();
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), CLOSE_TIMEOUT, is_running);
        let has_ended = waited.unwrap_or_else(PoisonError::into_inner).0.result.is_some();
        match self.thread.take() {
            Some(thread) if has_ended || thread.is_finished() => _ = thread.join(),
            // An HTTP request or a name resolution, which cannot be interrupted; both have timeouts.
            Some(_) => tracing::warn!(
                "the server of a WHIP output does not respond; the session ends after its timeout"
            ),
            None => {}
        }
    }
}

/// Runs a session from the offer to its end.
fn run_session(endpoint: &Endpoint, shared: &SessionState) -> Result<(), WhipError> {
    let socket =
        socket_towards(endpoint).map_err(|error| WhipError::Unreachable { why: error.to_string() })?;
    let mut config = Rtc::builder().clear_codecs();
    for (payload, resend, profile) in PROFILES {
        config.codec_config().add_h264(payload.into(), Some(resend.into()), true, profile);
    }
    config.set_max_stun_rto(Duration::from_secs(1));
    config.set_max_stun_retransmits(STUN_RETRANSMITS);
    let mut rtc = config.build(Instant::now());
    let own = socket.local_addr().map_err(|error| failed(&error))?;
    rtc.add_local_candidate(Candidate::host(own, "udp").map_err(|error| failed(&error))?);
    let mut change = rtc.sdp_api();
    let mid = change.add_media(MediaKind::Video, Direction::SendOnly, Some("rushes".into()), None, None);
    let Some((offer, pending)) = change.apply() else {
        return Err(WhipError::Failed { why: "no offer was created".into() });
    };
    let answer = endpoint.offer(&offer.to_sdp_string())?;
    let unusable = |why: &dyn std::fmt::Display| WhipError::Answer { why: why.to_string() };
    let accepted =
        SdpAnswer::from_sdp_string(&answer.description).map_err(|error| unusable(&error)).and_then(
            |description| rtc.sdp_api().accept_answer(pending, description).map_err(|error| unusable(&error)),
        );
    let outcome = accepted.and_then(|()| Peer { rtc, socket, own, mid }.run(shared));
    if let Some(session) = &answer.session {
        endpoint.end(session);
    }
    outcome
}

/// A socket on the local address that routes to the endpoint.
fn socket_towards(endpoint: &Endpoint) -> io::Result<UdpSocket> {
    let mut failed = io::Error::new(ErrorKind::NotFound, "its host name has no address");
    for address in endpoint.addresses()? {
        let any = match address {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        // Connecting a datagram socket sends nothing. It selects the route.
        let route =
            UdpSocket::bind((any, 0)).and_then(|probe| probe.connect(address).and(probe.local_addr()));
        match route.and_then(|own| UdpSocket::bind((own.ip(), 0))) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

struct Peer {
    rtc: Rtc,
    socket: UdpSocket,
    own: SocketAddr,
    mid: Mid,
}

impl Peer {
    /// Connects, sends the queued frames, and closes.
    fn run(&mut self, shared: &SessionState) -> Result<(), WhipError> {
        let started = Instant::now();
        let mut last_sent = started;
        let mut payload = None;
        loop {
            let (due, connected) = self.drain()?;
            if connected && payload.is_none() {
                payload = Some(self.payload().ok_or_else(|| WhipError::Answer {
                    why: "it does not accept H.264 Constrained Baseline".into(),
                })?);
                shared.update(|state| state.connected = Some(Instant::now()));
            }
            let mut state = shared.lock();
            let (frame, ended) = (state.queue.pop_front(), state.ended);
            drop(state);
            let now = Instant::now();
            match (frame, payload) {
                (Some((shown, data)), Some(payload)) => {
                    self.write(payload, shown, data, now)?;
                    last_sent = now;
                    continue;
                }
                _ if ended && (payload.is_none() || now - last_sent >= LINGER) => return self.close(),
                _ if payload.is_none() && now - started >= CONNECT_TIMEOUT => {
                    return Err(WhipError::NoConnection { limit: CONNECT_TIMEOUT });
                }
                _ => self.wait(due)?,
            }
        }
    }

    /// Processes all pending output. Returns the time of the next timeout, and true if the server is connected.
    fn drain(&mut self) -> Result<(Instant, bool), WhipError> {
        loop {
            match self.rtc.poll_output()? {
                Output::Timeout(due) if self.rtc.is_alive() => return Ok((due, self.rtc.is_connected())),
                Output::Timeout(_) => return Err(WhipError::Ended),
                Output::Transmit(packet) => {
                    // Datagrams may be lost.
                    let _ = self.socket.send_to(&packet.contents, packet.destination);
                }
                Output::Event(Event::IceConnectionStateChange(IceConnectionState::Disconnected)) => {
                    return Err(WhipError::Ended);
                }
                Output::Event(event) => tracing::trace!(?event, "whip"),
            }
        }
    }

    /// The payload type that the server accepted.
    fn payload(&mut self) -> Option<Pt> {
        self.rtc.writer(self.mid)?.payload_params().next().map(PayloadParams::pt)
    }

    fn write(
        &mut self,
        payload: Pt,
        shown: Duration,
        data: Arc<[u8]>,
        now: Instant,
    ) -> Result<(), WhipError> {
        let ticks = shown.as_nanos() * 9 / 100_000;
        let time = MediaTime::new(u64::try_from(ticks).unwrap_or(u64::MAX), Frequency::NINETY_KHZ);
        let Some(writer) = self.rtc.writer(self.mid) else { return Err(WhipError::Ended) };
        Ok(writer.write(payload, now, time, data)?)
    }

    /// Waits for a packet or the next timeout.
    fn wait(&mut self, due: Instant) -> Result<(), WhipError> {
        let wait =
            due.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), POLL_INTERVAL);
        self.socket.set_read_timeout(Some(wait)).map_err(|error| failed(&error))?;
        let mut packet = [0; 2048];
        let received = self.socket.recv_from(&mut packet);
        let now = Instant::now();
        let input = match received {
            Ok((length, source)) => match packet[..length].try_into() {
                Ok(contents) => {
                    let destination = self.own;
                    Input::Receive(now, Receive { proto: Protocol::Udp, source, destination, contents })
                }
                // Neither STUN nor DTLS nor RTP.
                Err(_) => return Ok(()),
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Input::Timeout(now)
            }
            Err(error) => return Err(failed(&error)),
        };
        Ok(self.rtc.handle_input(input)?)
    }

    /// Closes the connection.
    fn close(&mut self) -> Result<(), WhipError> {
        self.rtc.close()?;
        while self.rtc.is_alive() {
            match self.rtc.poll_output()? {
                Output::Transmit(packet) => _ = self.socket.send_to(&packet.contents, packet.destination),
                Output::Timeout(_) => break,
                Output::Event(_) => {}
            }
        }
        Ok(())
    }
}

fn failed(error: &dyn std::fmt::Display) -> WhipError {
    WhipError::Failed { why: error.to_string() }
}

impl From<RtcError> for WhipError {
    fn from(error: RtcError) -> Self {
        failed(&error)
    }
}
