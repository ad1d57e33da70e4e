//! One live address with noise, previews and the clip, which ffmpeg reads over the loopback during the run.
//!
//! The tests compare the published pictures with the received ones. The speed of the machine only changes the number of
//! pictures of the noise and of the previews, and the frames at which the clip waits for the next one.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tests::program::rushes;

const RATE: usize = 8;
const FRAMES: usize = 17;
const SIZE: (usize, usize) = (112, 64);
/// Ends a test that hangs; not a measurement.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A run of the embedded model with a live address.
struct LiveRun {
    child: Child,
    lines: Receiver<String>,
}

impl LiveRun {
    fn start(folder: &Path, live: &str) -> Self {
        let mut child = rushes(folder)
            .args(["generate", "a red ball bounces on a beach", "--seed", "5", "--steps", "6", "--json"])
            .args(["--fps", &RATE.to_string(), "--frames", &FRAMES.to_string(), "--live", live])
            .args(["--cache-dir", "cache"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits for an event. Returns the number of published pictures, and of those before the clip.
    fn wait_for(&self, event: &str) -> [usize; 2] {
        loop {
            let line = self.lines.recv_timeout(TIMEOUT).expect(event);
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["event"] == event {
                return ["pictures", "before_clip"]
                    .map(|count| usize::try_from(line["live"][count].as_u64().unwrap()).unwrap());
            }
        }
    }

    /// Sends SIGINT, which ends the run. Returns the counts of [`Self::wait_for`].
    fn stop(mut self) -> [usize; 2] {
        let id = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: the child was not waited for, so the process id is still its own.
        #[expect(unsafe_code, reason = "the standard library can only send SIGKILL")]
        let sent = unsafe { libc::kill(id, libc::SIGINT) };
        assert_eq!(sent, 0);
        let counts = self.wait_for("live_ended");
        assert!(self.child.wait().unwrap().success());
        counts
    }
}

fn lines(reader: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            // Fails if the test no longer receives.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// ffmpeg as a viewer, which prints the time stamp of every packet.
struct Viewer {
    child: Child,
    lines: Receiver<String>,
    times: Vec<f64>,
    base: f64,
}

impl Viewer {
    /// Connects, and retries until the address answers. Also writes the pictures to the file `seen`, in grey.
    fn connect(arguments: &[&str], seen: Option<&Path>) -> Self {
        for _ in 0..600 {
            let mut child =
                Command::new("ffmpeg")
                    .args(["-v", "error"])
                    .args(arguments)
                    .args(["-c", "copy", "-flush_packets", "1", "-f", "framecrc", "-"])
                    .args(seen.iter().flat_map(|_| {
                        ["-y", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray"]
                    }))
                    .args(seen)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("ffmpeg: `make setup` installs it");
            let lines = lines(child.stdout.take().unwrap());
            match lines.recv_timeout(TIMEOUT) {
                Ok(_) => return Self { child, lines, times: Vec::new(), base: 0.0 },
                Err(_) => {
                    child.wait().unwrap();
                    // The address is not open yet, and there is no notification.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        panic!("the address does not answer");
    }

    fn parse(&mut self, line: &str) {
        if let Some(base) = line.strip_prefix("#tb 0: ") {
            let (over, under) = base.split_once('/').unwrap();
            self.base = over.parse::<f64>().unwrap() / under.parse::<f64>().unwrap();
        } else if let Some(time) = line.split(',').nth(2).filter(|_| line.starts_with("0,")) {
            self.times.push(time.trim().parse::<f64>().unwrap() * self.base);
        }
    }

    /// Reads until there were `packets` packets in total.
    fn watch_until(&mut self, packets: usize) {
        while self.times.len() < packets {
            let line = self.lines.recv_timeout(TIMEOUT).expect("the stream continues");
            self.parse(&line);
        }
    }

    /// Reads until the stream ends.
    fn watch_to_the_end(&mut self) {
        while let Ok(line) = self.lines.recv_timeout(TIMEOUT) {
            self.parse(&line);
        }
        assert!(self.child.wait().unwrap().success());
    }

    /// Reads the packets that have arrived.
    fn catch_up(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.parse(&line);
        }
    }

    fn longest_gap(&self) -> f64 {
        self.times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All pictures of a file of raw grey pictures.
fn pictures(path: &Path) -> Vec<Vec<u8>> {
    std::fs::read(path).unwrap().chunks_exact(SIZE.0 * SIZE.1).map(<[u8]>::to_vec).collect()
}

/// The frames of a clip, in grey.
fn frames(clip: &Path) -> Vec<Vec<u8>> {
    let grey = clip.with_extension("grey");
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(clip)
        .args(["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray"])
        .arg(&grey)
        .status()
        .unwrap();
    assert!(status.success());
    pictures(&grey)
}

fn difference(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum: u32 = a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    f64::from(sum) / a.len() as f64
}

/// The index of the frame that a picture shows.
fn shown(picture: &[u8], clip: &[Vec<u8>]) -> usize {
    let differences = clip.iter().map(|frame| difference(picture, frame)).enumerate();
    let (number, least) = differences.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(least < 4.0, "a picture is {least} from the nearest frame of the clip");
    number
}

#[test]
fn an_hls_address_shows_noise_then_previews_then_the_clip_in_a_loop() {
    let folder = tempfile::tempdir().unwrap();
    let playlist: PathBuf = folder.path().join("live/index.m3u8");
    let run = LiveRun::start(folder.path(), "hls:live");
    let seen = folder.path().join("seen.grey");
    let mut viewer =
        Viewer::connect(&["-live_start_index", "0", "-i", playlist.to_str().unwrap()], Some(&seen));
    let [published, _] = run.wait_for("done");
    // The rest of the first pass, and two loops.
    viewer.watch_until(published + 3 * FRAMES);
    let [sent, before_clip] = run.stop();
    viewer.watch_to_the_end();

    let seen = pictures(&seen);
    assert_eq!(seen.len(), sent, "every published picture is received");
    let tick = 1.0 / RATE as f64;
    for pair in viewer.times.windows(2) {
        assert!((pair[1] - pair[0] - tick).abs() < 1e-3, "{pair:?} are two pictures in succession");
    }

    let clip = frames(&folder.path().join("out.mp4"));
    assert_eq!(clip.len(), FRAMES);
    let numbers: Vec<usize> = seen[before_clip..].iter().map(|picture| shown(picture, &clip)).collect();
    // While the clip is decoded, its newest frame is repeated until the next one; then the clip loops.
    let complete = numbers.iter().position(|number| *number == FRAMES - 1).unwrap();
    assert_eq!(numbers[0], 0);
    assert!(
        numbers[..=complete].windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1),
        "{numbers:?}"
    );
    let looped =
        &numbers[complete + numbers[complete..].iter().take_while(|number| **number == FRAMES - 1).count()..];
    assert!(looped.len() >= 2 * FRAMES, "{numbers:?}");
    assert!(looped.iter().enumerate().all(|(index, number)| *number == index % FRAMES), "{numbers:?}");

    // The first picture is noise: different from the clip, and not flat.
    assert!(clip.iter().all(|frame| difference(&seen[0], frame) > 15.0));
    let mean = seen[0].iter().map(|grey| u32::from(*grey)).sum::<u32>() / seen[0].len() as u32;
    assert!(difference(&seen[0], &vec![u8::try_from(mean).unwrap(); seen[0].len()]) > 4.0);
    // There are previews between noise and clip.
    let previews = seen[..before_clip].iter().filter(|picture| {
        difference(picture, &seen[0]) > 4.0 && clip.iter().all(|frame| difference(picture, frame) > 4.0)
    });
    assert!(previews.count() >= 1, "no preview was received");
}

#[test]
fn an_rtsp_address_has_no_gap_from_the_first_preview_to_the_loop() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("rtsp://127.0.0.1:{port}/clip");
    let run = LiveRun::start(folder.path(), &address);
    let mut viewer = Viewer::connect(&["-rtsp_transport", "tcp", "-i", &address], None);
    viewer.watch_until(1);
    run.wait_for("done");
    viewer.catch_up();
    viewer.watch_until(viewer.times.len() + 2 * FRAMES + RATE);
    run.stop();
    let gap = viewer.longest_gap();
    assert!(gap <= 0.2, "{gap} s between two pictures: {:?}", viewer.times);
    assert!(folder.path().join("out.mp4").is_file(), "the clip is also written to its file");
}
