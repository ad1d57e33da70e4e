//! A small RTSP server for one stream and any number of viewers.
//!
//! Each viewer has a bounded queue. A viewer that is too slow is disconnected, so that it never delays the others. It
//! receives packets from the next key frame on, interleaved with the responses (TCP) or as datagrams.
//!
//! One thread accepts connections, and each connection has a thread that reads requests and one that writes. All have
//! ended when the server is dropped.

use super::rtsp_request::{Request, Transport, description, interleaved, starts_with_parameter_sets};
use super::{Collector, bytes};
use gstreamer as gst;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most packets that are queued for a viewer: one or two seconds.
const QUEUE: usize = 512;
/// The longest request in bytes.
const MAX_REQUEST_BYTES: u64 = 16384;
/// How long a DESCRIBE request waits for the first encoded frame.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(60);
/// The interval at which the accepting thread checks whether the server is closed.
const ACCEPT_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long viewers may take to receive the queued packets when the server is closed.
const LINGER: Duration = Duration::from_secs(2);

/// Serves the packets of an RTP payloader.
#[derive(Debug)]
pub(crate) struct RtspServer {
    shared: Arc<ServerState>,
    /// `None` once it is joined.
    accepting: Option<JoinHandle<()>>,
}

/// A client, with the thread that serves it.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct ServerState {
    title: String,
    description: Mutex<Option<String>>,
    described: Condvar,
    viewers: Mutex<Vec<Viewer>>,
    connections: Mutex<Vec<Connection>>,
    closed: AtomicBool,
}

/// A client that is playing.
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

/// The delivery of packets to a viewer.
#[derive(Debug)]
enum Delivery {
    Interleaved(u8),
    Datagrams { packets: UdpSocket, reports: SocketAddr },
}

impl RtspServer {
    /// Starts a server on a listener. `title` is the title of the stream.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn start(listener: &TcpListener, title: &str) -> io::Result<Self> {
        let title = title.replace(['\r', '\n'], " ");
        let shared = Arc::new(ServerState { title, ..ServerState::default() });
        let listener = listener.try_clone()?;
        // A client may disconnect between the poll and the accept.
        listener.set_nonblocking(true)?;
        let server = Arc::clone(&shared);
        let accepting =
            thread::Builder::new().name("rtsp".into()).spawn(move || accept(&listener, &server))?;
        Ok(Self { shared, accepting: Some(accepting) })
    }
}

/// Accepts clients until the server is closed.
fn accept(listener: &TcpListener, server: &Arc<ServerState>) {
    while !server.closed.load(Ordering::SeqCst) {
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&ACCEPT_INTERVAL)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the RTSP server accepts no more viewers");
                return;
            }
        }
        let accepted = listener.accept().and_then(|(stream, _)| connect(server, stream));
        match accepted {
            Ok(connection) => {
                let mut connections = lock(&server.connections);
                connections.retain(|other| !other.thread.is_finished());
                connections.push(connection);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!(%error, "a viewer was not accepted");
                // Out of descriptors, for example: the poll would return at once.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Starts the thread of a client.
fn connect(server: &Arc<ServerState>, stream: TcpStream) -> io::Result<Connection> {
    stream.set_nonblocking(false)?;
    let (shared, served) = (Arc::clone(server), stream.try_clone()?);
    let thread = thread::Builder::new().name("rtsp-viewer".into()).spawn(move || {
        if let Err(error) = serve(&shared, &served) {
            tracing::debug!(%error, "a viewer disconnected");
        }
        // Also ends the connection for the list of connections, which has a handle of it.
        let _ = served.shutdown(Shutdown::Both);
    })?;
    Ok(Connection { stream, thread })
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
        let starts = starts_with_parameter_sets(&packet);
        lock(&self.shared.viewers).retain_mut(|viewer| {
            viewer.started |= starts;
            let keeps_up = !viewer.started || viewer.send(&packet);
            if !keeps_up {
                let _ = viewer.stream.shutdown(Shutdown::Both);
            }
            keeps_up
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
        // Locked, so that a request is either waiting or has yet to see that the server is closed.
        drop(lock(&self.shared.description));
        self.shared.described.notify_all();
        if let Some(accepting) = self.accepting.take() {
            // A panic there has been printed.
            let _ = accepting.join();
        }
        lock(&self.shared.viewers).drain(..).for_each(Viewer::close);
        let connections = std::mem::take(&mut *lock(&self.shared.connections));
        // No more requests; the queued packets are sent.
        for connection in &connections {
            let _ = connection.stream.shutdown(Shutdown::Read);
        }
        let started = Instant::now();
        for Connection { stream, thread } in connections {
            while !thread.is_finished() && started.elapsed() < LINGER {
                thread::sleep(Duration::from_millis(5));
            }
            // Ends a write to a viewer that does not read.
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

impl Viewer {
    /// Sends a packet. Returns false if the viewer does not keep up or has disconnected.
    fn send(&self, packet: &[u8]) -> bool {
        match &self.delivery {
            Delivery::Interleaved(channel) => {
                self.queue.try_send(Message::Bytes(interleaved(*channel, packet))).is_ok()
            }
            // Datagrams may be lost.
            Delivery::Datagrams { packets, .. } => packets.send(packet).is_ok() || !self.is_disconnected(),
        }
    }

    fn is_disconnected(&self) -> bool {
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

/// Serves one viewer until it disconnects.
fn serve(shared: &ServerState, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (queue, queued) = sync_channel(QUEUE);
    let out = stream.try_clone()?;
    thread::scope(|scope| {
        thread::Builder::new()
            .name("rtsp-writer".into())
            .spawn_scoped(scope, move || write_all(out, &queued))?;
        let served = answer(shared, stream, &queue);
        // The writer sends the queued packets, then closes. With a full queue it closes at once.
        let is_queued = queue.try_send(Message::Close).is_ok();
        if served.is_err() || !is_queued {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(queue);
        served
    })
}

/// Answers the requests of a viewer until it disconnects.
fn answer(shared: &ServerState, stream: &TcpStream, queue: &SyncSender<Message>) -> io::Result<()> {
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
            "SETUP" => match request.transport().map(|wanted| Delivery::open(wanted, stream)).transpose()? {
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
        let response = request.response(status, &lines, &body).into_bytes();
        if queue.send(Message::Bytes(response)).is_err() {
            break;
        }
        if request.method == "TEARDOWN" || shared.closed.load(Ordering::SeqCst) {
            break;
        }
        if let Some(delivery) = delivery.take_if(|_| plays) {
            let viewer =
                Viewer { queue: queue.clone(), stream: stream.try_clone()?, delivery, started: false };
            lock(&shared.viewers).push(viewer);
        }
    }
    Ok(())
}

impl ServerState {
    /// Waits for the SDP, which is known once the first frame is encoded.
    fn description(&self) -> Option<String> {
        let missing = |found: &mut Option<String>| found.is_none() && !self.closed.load(Ordering::SeqCst);
        let waited = self.described.wait_timeout_while(lock(&self.description), DESCRIBE_TIMEOUT, missing);
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

fn write_all(mut stream: TcpStream, queued: &Receiver<Message>) {
    while let Ok(Message::Bytes(bytes)) = queued.recv() {
        if stream.write_all(&bytes).is_err() {
            break;
        }
    }
    // Fails if the viewer has already disconnected.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Reads the next request. Returns `None` when the viewer has disconnected. Interleaved packets of the client are
/// skipped.
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
    let mut limited = input.by_ref().take(MAX_REQUEST_BYTES);
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
