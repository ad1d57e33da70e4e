//! One address that sharpens, as ffmpeg reads it over the loopback while the run goes on.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tests::program::rushes;

const RATE: usize = 8;
const FRAMES: usize = 17;
const SIZE: (usize, usize) = (112, 64);
/// Far above what any of this takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A run of the embedded model that is on the air.
struct OnAir {
    child: Child,
    lines: Receiver<String>,
}

impl OnAir {
    fn start(folder: &Path, live: &str) -> Self {
        let mut child = rushes(folder)
            .args(["generate", "a red ball bounces on a beach", "--seed", "5", "--steps", "12", "--json"])
            .args(["--fps", &RATE.to_string(), "--frames", &FRAMES.to_string(), "--live", live])
            .args(["--cache-dir", "cache"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits until the clip itself is whole, which is when it begins to go round.
    fn wait_for_the_clip(&self) {
        while !self.lines.recv_timeout(PATIENCE).expect("the clip").contains(r#""event":"done""#) {}
    }

    /// Ctrl-C, which ends it in order.
    fn stop(mut self) {
        let id = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: a signal to a child that was not waited for, so the number is still its own.
        #[expect(unsafe_code, reason = "the standard library can only kill")]
        let sent = unsafe { libc::kill(id, libc::SIGINT) };
        assert_eq!(sent, 0);
        assert!(self.child.wait().unwrap().success());
    }
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            // The test may have seen enough.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// ffmpeg at the other end, which tells the time of every packet as it comes.
struct Viewer {
    child: Child,
    lines: Receiver<String>,
    times: Vec<f64>,
    base: f64,
}

impl Viewer {
    /// Connects; tries again until the address answers.
    fn connect(arguments: &[&str]) -> Self {
        for _ in 0..600 {
            let mut child = Command::new("ffmpeg")
                .args(["-v", "error"])
                .args(arguments)
                .args(["-c", "copy", "-flush_packets", "1", "-f", "framecrc", "-"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("ffmpeg: `make setup` installs it");
            let lines = lines(child.stdout.take().unwrap());
            match lines.recv_timeout(PATIENCE) {
                Ok(_) => return Self { child, lines, times: Vec::new(), base: 0.0 },
                Err(_) => {
                    child.wait().unwrap();
                    // Nobody listens yet, and nothing would tell when.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        panic!("nobody listens");
    }

    fn take(&mut self, line: &str) {
        if let Some(base) = line.strip_prefix("#tb 0: ") {
            let (over, under) = base.split_once('/').unwrap();
            self.base = over.parse::<f64>().unwrap() / under.parse::<f64>().unwrap();
        } else if let Some(time) = line.split(',').nth(2).filter(|_| line.starts_with("0,")) {
            self.times.push(time.trim().parse::<f64>().unwrap() * self.base);
        }
    }

    fn watch(&mut self, packets: usize) {
        let wanted = self.times.len() + packets;
        while self.times.len() < wanted {
            let line = self.lines.recv_timeout(PATIENCE).expect("the stream goes on");
            self.take(&line);
        }
    }

    /// Takes what has come so far.
    fn catch_up(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.take(&line);
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

/// Watches from the first picture until the clip has gone round twice, and stops the run.
fn watch(on_air: OnAir, viewer: &mut Viewer) {
    viewer.watch(1);
    on_air.wait_for_the_clip();
    viewer.catch_up();
    viewer.watch(2 * FRAMES + RATE);
    on_air.stop();
    let gap = viewer.longest_gap();
    assert!(gap <= 0.2, "{gap} s between two pictures: {:?}", viewer.times);
    let span = viewer.times.last().unwrap() - viewer.times[0];
    assert!(span > 4.0, "only {span} s were seen");
}

/// All frames of a playlist, grey.
fn pictures(playlist: &Path) -> Vec<Vec<u8>> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(playlist)
        .args(["-f", "rawvideo", "-pix_fmt", "gray", "-"])
        .output()
        .unwrap();
    output.stdout.chunks_exact(SIZE.0 * SIZE.1).map(<[u8]>::to_vec).collect()
}

fn difference(a: &[u8], b: &[u8]) -> f64 {
    let sum: u32 = a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    f64::from(sum) / a.len() as f64
}

#[test]
fn an_hls_address_shows_noise_then_previews_then_the_clip_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let playlist: PathBuf = folder.path().join("live/index.m3u8");
    let on_air = OnAir::start(folder.path(), "hls:live");
    let mut viewer = Viewer::connect(&["-live_start_index", "0", "-i", playlist.to_str().unwrap()]);
    watch(on_air, &mut viewer);

    let seen = pictures(&playlist);
    let end = seen.len();
    assert!(end > 2 * FRAMES, "{end} pictures");
    // The clip goes round: what was on one round ago is on again.
    for back in 1..=FRAMES {
        let again = difference(&seen[end - back], &seen[end - back - FRAMES]);
        assert!(again < 4.0, "{back} from the end: {again}");
    }
    // It began with noise, which is neither the clip nor flat.
    assert!(difference(&seen[0], &seen[end - 1]) > 15.0);
    let mean = seen[0].iter().map(|grey| u32::from(*grey)).sum::<u32>() / seen[0].len() as u32;
    assert!(difference(&seen[0], &vec![u8::try_from(mean).unwrap(); seen[0].len()]) > 4.0);
    // And there was something in between.
    let clip = &seen[end - FRAMES..];
    let between = seen.iter().filter(|picture| {
        difference(picture, &seen[0]) > 4.0 && clip.iter().all(|frame| difference(picture, frame) > 4.0)
    });
    assert!(between.count() >= 1, "no preview was seen");
}

#[test]
fn an_rtsp_address_has_no_gap_from_the_first_preview_to_the_loop() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("rtsp://127.0.0.1:{port}/clip");
    let on_air = OnAir::start(folder.path(), &address);
    let mut viewer = Viewer::connect(&["-rtsp_transport", "tcp", "-i", &address]);
    watch(on_air, &mut viewer);
    assert!(folder.path().join("out.mp4").is_file(), "the clip went to its file as well");
}
