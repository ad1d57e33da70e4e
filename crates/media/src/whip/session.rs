//! WebRTC to one server, on a thread of its own: ICE and DTLS must go on while no frame comes.

use super::WhipError;
use super::signalling::Endpoint;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use str0m::change::SdpAnswer;
use str0m::format::PayloadParams;
use str0m::media::{Direction, Frequency, MediaKind, MediaTime, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcError};

/// How long it may take until frames can be sent, once the server has answered.
const CONNECTING: Duration = Duration::from_secs(15);
/// Frames that wait to be sent are looked for this often.
const TICK: Duration = Duration::from_millis(5);
/// How long packets that were lost may be asked for after the last frame.
const LINGER: Duration = Duration::from_millis(300);
/// How long ending a session may take.
const ENDING: Duration = Duration::from_secs(5);
/// After this many questions without an answer, at most a second apart, a server is gone.
const QUESTIONS: usize = 6;

/// Constrained Baseline and Baseline of level 3.1 as RTP names them: what every WebRTC peer decodes.
const PROFILES: [(u8, u8, u32); 2] = [(96, 97, 0x42_e01f), (98, 99, 0x42_001f)];

/// A frame in Annex B, and when it is shown.
type Frame = (Duration, Arc<[u8]>);

/// A session that sends frames when they are due.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<SessionState>,
    /// When the first frame is shown, on the clip's time line.
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
    waiting: VecDeque<Frame>,
    /// No frame comes any more.
    ended: bool,
    /// The thread is over, and why.
    over: Option<Result<(), WhipError>>,
}

impl SessionState {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single assignment, so the state is whole even after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Session {
    /// Begins a session at an endpoint, without waiting for its answer.
    pub(super) fn start(endpoint: Endpoint) -> io::Result<Self> {
        let shared = Arc::new(SessionState::default());
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("whip".into()).spawn(move || {
            let outcome = hold(&endpoint, &of_thread);
            of_thread.update(|state| state.over = Some(outcome));
        })?;
        Ok(Self { shared, first: None })
    }

    /// Sends a frame when it is due: as long after the connection as it is shown after the first frame. Waits until then.
    pub(super) fn send(&mut self, shown: Duration, data: Arc<[u8]>) -> Result<(), WhipError> {
        let after = shown.saturating_sub(*self.first.get_or_insert(shown));
        let mut state = self.shared.lock();
        loop {
            if let Some(over) = &state.over {
                return Err(over.clone().err().unwrap_or(WhipError::Gone));
            }
            let left = state.connected.map(|at| (at + after).saturating_duration_since(Instant::now()));
            let wait = match left {
                Some(Duration::ZERO) => break,
                Some(left) => left,
                // The thread ends by itself where there is no connection.
                None => CONNECTING,
            };
            state = self.shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting.push_back((after, data));
        Ok(())
    }

    /// Ends the session once all frames are sent.
    pub(super) fn finish(&mut self) -> Result<(), WhipError> {
        self.shared.update(|state| state.ended = true);
        let unended = |state: &mut State| state.over.is_none();
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), ENDING, unended);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.over.clone().unwrap_or(Ok(()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.update(|state| {
            state.waiting.clear();
            state.ended = true;
        });
    }
}

/// The whole session, from the offer to the farewell.
fn hold(endpoint: &Endpoint, shared: &SessionState) -> Result<(), WhipError> {
    let socket =
        socket_towards(endpoint).map_err(|error| WhipError::Unreachable { why: error.to_string() })?;
    let mut config = Rtc::builder().clear_codecs();
    for (payload, resend, profile) in PROFILES {
        config.codec_config().add_h264(payload.into(), Some(resend.into()), true, profile);
    }
    config.set_max_stun_rto(Duration::from_secs(1));
    config.set_max_stun_retransmits(QUESTIONS);
    let mut rtc = config.build(Instant::now());
    let own = socket.local_addr().map_err(|error| broken(&error))?;
    rtc.add_local_candidate(Candidate::host(own, "udp").map_err(|error| broken(&error))?);
    let mut change = rtc.sdp_api();
    let mid = change.add_media(MediaKind::Video, Direction::SendOnly, Some("rushes".into()), None, None);
    let Some((offer, pending)) = change.apply() else {
        return Err(WhipError::Broken { why: "there is nothing to offer".into() });
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

/// A socket at the address of this machine from which the endpoint is reached.
fn socket_towards(endpoint: &Endpoint) -> io::Result<UdpSocket> {
    let mut failed = io::Error::new(ErrorKind::NotFound, "its name has no address");
    for address in endpoint.addresses()? {
        let any = match address {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        // Connecting a datagram socket sends nothing; it asks for the way.
        let way = UdpSocket::bind((any, 0)).and_then(|probe| probe.connect(address).and(probe.local_addr()));
        match way.and_then(|own| UdpSocket::bind((own.ip(), 0))) {
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
    /// Connects, sends what comes, and closes.
    fn run(&mut self, shared: &SessionState) -> Result<(), WhipError> {
        let began = Instant::now();
        let mut last_sent = began;
        let mut payload = None;
        loop {
            let (due, connected) = self.drain()?;
            if connected && payload.is_none() {
                payload = Some(self.payload().ok_or_else(|| WhipError::Answer {
                    why: "it takes no H.264 of the Constrained Baseline profile".into(),
                })?);
                shared.update(|state| state.connected = Some(Instant::now()));
            }
            let mut state = shared.lock();
            let (frame, ended) = (state.waiting.pop_front(), state.ended);
            drop(state);
            let now = Instant::now();
            match (frame, payload) {
                (Some((shown, data)), Some(payload)) => {
                    self.write(payload, shown, data, now)?;
                    last_sent = now;
                    continue;
                }
                _ if ended && (payload.is_none() || now - last_sent >= LINGER) => return self.close(),
                _ if payload.is_none() && now - began >= CONNECTING => {
                    return Err(WhipError::NoConnection { limit: CONNECTING });
                }
                _ => self.wait(due)?,
            }
        }
    }

    /// Sends and hears what there is; until when there is nothing more, and whether the server is connected.
    fn drain(&mut self) -> Result<(Instant, bool), WhipError> {
        loop {
            match self.rtc.poll_output()? {
                Output::Timeout(due) if self.rtc.is_alive() => return Ok((due, self.rtc.is_connected())),
                Output::Timeout(_) => return Err(WhipError::Gone),
                Output::Transmit(packet) => {
                    // A datagram that is lost is lost.
                    let _ = self.socket.send_to(&packet.contents, packet.destination);
                }
                Output::Event(Event::IceConnectionStateChange(IceConnectionState::Disconnected)) => {
                    return Err(WhipError::Gone);
                }
                Output::Event(event) => tracing::trace!(?event, "whip"),
            }
        }
    }

    /// The payload type that the server took.
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
        let Some(writer) = self.rtc.writer(self.mid) else { return Err(WhipError::Gone) };
        Ok(writer.write(payload, now, time, data)?)
    }

    /// Waits for a packet, or until there is something else to do.
    fn wait(&mut self, due: Instant) -> Result<(), WhipError> {
        let wait = due.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), TICK);
        self.socket.set_read_timeout(Some(wait)).map_err(|error| broken(&error))?;
        let mut packet = [0; 2048];
        let received = self.socket.recv_from(&mut packet);
        let now = Instant::now();
        let input = match received {
            Ok((length, source)) => match packet[..length].try_into() {
                Ok(contents) => {
                    let destination = self.own;
                    Input::Receive(now, Receive { proto: Protocol::Udp, source, destination, contents })
                }
                // Not ours: neither STUN nor DTLS nor RTP.
                Err(_) => return Ok(()),
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Input::Timeout(now)
            }
            Err(error) => return Err(broken(&error)),
        };
        Ok(self.rtc.handle_input(input)?)
    }

    /// Tells the server that this is the end.
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

fn broken(error: &dyn std::fmt::Display) -> WhipError {
    WhipError::Broken { why: error.to_string() }
}

impl From<RtcError> for WhipError {
    fn from(error: RtcError) -> Self {
        broken(&error)
    }
}
