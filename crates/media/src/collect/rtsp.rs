//! A small RTSP server for one stream and any number of viewers.
//!
//! Each viewer has a bounded queue; one that does not keep up is let go, so that it never holds the others. It gets its
//! packets from the next key frame on, between the answers (TCP) or as datagrams.

use super::rtsp_request::{Request, Transport, begins_parameter_sets, description, interleaved};
use super::{Collector, bytes};
use gstreamer as gst;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Packets that may wait for a viewer: a second or two.
const QUEUE: usize = 512;
/// Longest request in bytes.
const REQUEST: u64 = 16384;
/// How long a viewer waits for the first frame to be encoded.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves the packets of an RTP payloader.
#[derive(Debug)]
pub(crate) struct RtspServer {
    shared: Arc<ServerState>,
    address: SocketAddr,
}

#[derive(Debug, Default)]
struct ServerState {
    title: String,
    description: Mutex<Option<String>>,
    described: Condvar,
    viewers: Mutex<Vec<Viewer>>,
    closed: AtomicBool,
}

/// Someone who is playing.
#[derive(Debug)]
struct Viewer {
    queue: SyncSender<Message>,
    stream: TcpStream,
    delivery: Delivery,
    started: bool,
}

#[derive(Debug)]
enum Message {
    Bytes(Vec<u8>),
    Close,
}

/// How packets get to a viewer.
#[derive(Debug)]
enum Delivery {
    Interleaved(u8),
    Datagrams { packets: UdpSocket, reports: SocketAddr },
}

impl RtspServer {
    /// A server that answers at a listener from now on. `title` says what the stream is.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn start(listener: &TcpListener, title: &str) -> io::Result<Self> {
        let title = title.replace(['\r', '\n'], " ");
        let shared = Arc::new(ServerState { title, ..ServerState::default() });
        let (listener, address) = (listener.try_clone()?, listener.local_addr()?);
        let serving = Arc::clone(&shared);
        std::thread::Builder::new().name("rtsp".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.closed.load(Ordering::SeqCst) {
                    break;
                }
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || {
                    if let Err(error) = serve(&shared, stream) {
                        tracing::debug!(%error, "a viewer left");
                    }
                });
            }
        })?;
        Ok(Self { shared, address })
    }
}

impl Collector for RtspServer {
    fn format(&mut self, caps: &gst::CapsRef) {
        let Some(fields) = caps.structure(0) else { return };
        let payload_type = fields.get::<i32>("payload").unwrap_or(96);
        let parameters: String = ["profile-level-id", "sprop-parameter-sets"]
            .into_iter()
            .filter_map(|name| Some(format!(";{name}={}", fields.get::<String>(name).ok()?)))
            .collect();
        *lock(&self.shared.description) = Some(description(&self.shared.title, payload_type, &parameters));
        self.shared.described.notify_all();
    }

    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        let packet = bytes(buffer)?;
        let begins = begins_parameter_sets(&packet);
        lock(&self.shared.viewers).retain_mut(|viewer| {
            viewer.started |= begins;
            let kept = !viewer.started || viewer.send(&packet);
            if !kept {
                let _ = viewer.stream.shutdown(Shutdown::Both);
            }
            kept
        });
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        lock(&self.shared.viewers).drain(..).for_each(|viewer| viewer.close());
        Ok(())
    }
}

impl Drop for RtspServer {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.described.notify_all();
        // Wakes the thread that waits for viewers.
        let _ = TcpStream::connect(self.address);
    }
}

impl Viewer {
    /// Whether the viewer keeps up.
    fn send(&self, packet: &[u8]) -> bool {
        match &self.delivery {
            Delivery::Interleaved(channel) => {
                self.queue.try_send(Message::Bytes(interleaved(*channel, packet))).is_ok()
            }
            // A datagram that is lost is lost.
            Delivery::Datagrams { packets, .. } => packets.send(packet).is_ok() || !self.is_gone(),
        }
    }

    fn is_gone(&self) -> bool {
        matches!(self.stream.take_error(), Ok(Some(_)) | Err(_))
    }

    fn close(self) {
        if let Delivery::Datagrams { packets, reports } = &self.delivery {
            // RTCP's BYE without a source (RFC 3550 §6.6).
            let _ = packets.send_to(&[0x80, 203, 0, 0], reports);
        }
        if self.queue.try_send(Message::Close).is_err() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

/// Answers one viewer until it leaves.
fn serve(shared: &Arc<ServerState>, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (queue, waiting) = sync_channel(QUEUE);
    let out = stream.try_clone()?;
    std::thread::spawn(move || write_all(out, &waiting));
    let mut input = BufReader::new(stream.try_clone()?);
    let mut delivery = None;
    while let Some(request) = read_request(&mut input)? {
        let (ok, mut lines) = ("200 OK", vec![]);
        let (mut status, mut body) = (ok, String::new());
        match request.method.as_str() {
            "OPTIONS" => lines.push("Public: OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, TEARDOWN".into()),
            "DESCRIBE" => match shared.description() {
                Some(found) => {
                    lines.push("Content-Type: application/sdp".into());
                    body = found;
                }
                None => status = "404 Not Found",
            },
            "SETUP" => match request.transport().map(|wanted| Delivery::open(wanted, &stream)).transpose()? {
                Some((opened, line)) => {
                    lines = vec![line, "Session: 1".into()];
                    delivery = Some(opened);
                }
                None => status = "461 Unsupported Transport",
            },
            "PLAY" => lines = vec!["Session: 1".into(), "Range: npt=0-".into()],
            "GET_PARAMETER" | "SET_PARAMETER" | "TEARDOWN" => lines.push("Session: 1".into()),
            _ => status = "501 Not Implemented",
        }
        let plays = request.method == "PLAY" && delivery.is_some();
        if request.method == "PLAY" && !plays {
            status = "455 Method Not Valid in This State";
        }
        let answer = request.answer(status, &lines, &body).into_bytes();
        if queue.send(Message::Bytes(answer)).is_err() {
            break;
        }
        if request.method == "TEARDOWN" {
            break;
        }
        if let Some(delivery) = delivery.take_if(|_| plays) {
            let viewer =
                Viewer { queue: queue.clone(), stream: stream.try_clone()?, delivery, started: false };
            lock(&shared.viewers).push(viewer);
        }
    }
    // The writer finishes what waits, then closes.
    let _ = queue.try_send(Message::Close);
    Ok(())
}

impl ServerState {
    /// What the stream is, once its first frame is encoded.
    fn description(&self) -> Option<String> {
        let missing = |found: &mut Option<String>| found.is_none() && !self.closed.load(Ordering::SeqCst);
        let waited = self.described.wait_timeout_while(lock(&self.description), PATIENCE, missing);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Delivery {
    fn open(wanted: Transport, stream: &TcpStream) -> io::Result<(Self, String)> {
        match wanted {
            Transport::Interleaved(channel) => {
                let next = channel.saturating_add(1);
                let line = format!("Transport: RTP/AVP/TCP;unicast;interleaved={channel}-{next}");
                Ok((Self::Interleaved(channel), line))
            }
            Transport::Datagrams(port) => {
                let (mut viewer, mut own) = (stream.peer_addr()?, stream.local_addr()?);
                own.set_port(0);
                viewer.set_port(port);
                let packets = UdpSocket::bind(own)?;
                packets.connect(viewer)?;
                let (from, next) = (packets.local_addr()?.port(), port.saturating_add(1));
                let to = from.saturating_add(1);
                viewer.set_port(next);
                let line =
                    format!("Transport: RTP/AVP;unicast;client_port={port}-{next};server_port={from}-{to}");
                Ok((Self::Datagrams { packets, reports: viewer }, line))
            }
        }
    }
}

fn write_all(mut stream: TcpStream, waiting: &Receiver<Message>) {
    while let Ok(Message::Bytes(bytes)) = waiting.recv() {
        if stream.write_all(&bytes).is_err() {
            break;
        }
    }
    // Fails if the viewer was first.
    let _ = stream.shutdown(Shutdown::Both);
}

/// The next request; none when the viewer has left. What players send between their requests is skipped.
fn read_request(input: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    loop {
        match input.fill_buf()?.first() {
            None => return Ok(None),
            Some(b'$') => {
                let mut head = [0; 4];
                input.read_exact(&mut head)?;
                let length = u64::from(u16::from_be_bytes([head[2], head[3]]));
                io::copy(&mut input.by_ref().take(length), &mut io::sink())?;
            }
            Some(_) => break,
        }
    }
    let mut text = String::new();
    let mut limited = input.by_ref().take(REQUEST);
    while limited.read_line(&mut text)? > 0 && !text.ends_with("\n\r\n") && !text.ends_with("\n\n") {}
    let body = text
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    io::copy(&mut input.by_ref().take(body.unwrap_or(0)), &mut io::sink())?;
    Ok(Request::parse(&text))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
