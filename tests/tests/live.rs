//! One address that sharpens, as ffmpeg reads it over the loopback while the run goes on.
//!
//! The tests go by the pictures that were sent and seen. How long anything takes on this machine decides only how many
//! pictures of the noise and of the previews there are, and on which of its frames the clip waits while it is made.
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
/// Nothing is measured by it: it ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(600);

/// A run of the embedded model that is on the air.
struct OnAir {
    child: Child,
    lines: Receiver<String>,
}

impl OnAir {
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

    /// Waits for an event, and gives the pictures that were on: all, and those before the clip.
    fn wait_for(&self, event: &str) -> [usize; 2] {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect(event);
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["event"] == event {
                return ["pictures", "before_clip"]
                    .map(|count| usize::try_from(line["live"][count].as_u64().unwrap()).unwrap());
            }
        }
    }

    /// Ctrl-C, which ends it in order. Gives what was on.
    fn stop(mut self) -> [usize; 2] {
        let id = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: a signal to a child that was not waited for, so the number is still its own.
        #[expect(unsafe_code, reason = "the standard library can only kill")]
        let sent = unsafe { libc::kill(id, libc::SIGINT) };
        assert_eq!(sent, 0);
        let on = self.wait_for("live_ended");
        assert!(self.child.wait().unwrap().success());
        on
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
    /// Connects; tries again until the address answers. The pictures go to the file `seen` as well, grey, if there is one.
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

    /// Watches until there were so many packets in all.
    fn watch_until(&mut self, packets: usize) {
        while self.times.len() < packets {
            let line = self.lines.recv_timeout(PATIENCE).expect("the stream goes on");
            self.take(&line);
        }
    }

    /// Watches until the stream has ended.
    fn watch_to_the_end(&mut self) {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.take(&line);
        }
        assert!(self.child.wait().unwrap().success());
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

/// All pictures of a file of grey ones.
fn pictures(path: &Path) -> Vec<Vec<u8>> {
    std::fs::read(path).unwrap().chunks_exact(SIZE.0 * SIZE.1).map(<[u8]>::to_vec).collect()
}

/// The frames of a clip, grey.
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

/// The number of the frame that a picture shows.
fn shown(picture: &[u8], clip: &[Vec<u8>]) -> usize {
    let differences = clip.iter().map(|frame| difference(picture, frame)).enumerate();
    let (number, least) = differences.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(least < 4.0, "a picture is {least} from the nearest frame of the clip");
    number
}

#[test]
fn an_hls_address_shows_noise_then_previews_then_the_clip_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let playlist: PathBuf = folder.path().join("live/index.m3u8");
    let on_air = OnAir::start(folder.path(), "hls:live");
    let seen = folder.path().join("seen.grey");
    let mut viewer =
        Viewer::connect(&["-live_start_index", "0", "-i", playlist.to_str().unwrap()], Some(&seen));
    let [on_by_then, _] = on_air.wait_for("done");
    // The rest of its first time, and twice round.
    viewer.watch_until(on_by_then + 3 * FRAMES);
    let [sent, before_clip] = on_air.stop();
    viewer.watch_to_the_end();

    let seen = pictures(&seen);
    assert_eq!(seen.len(), sent, "every picture that was on is seen");
    let tick = 1.0 / RATE as f64;
    for pair in viewer.times.windows(2) {
        assert!((pair[1] - pair[0] - tick).abs() < 1e-3, "{pair:?} are two pictures in succession");
    }

    let clip = frames(&folder.path().join("out.mp4"));
    assert_eq!(clip.len(), FRAMES);
    let numbers: Vec<usize> = seen[before_clip..].iter().map(|picture| shown(picture, &clip)).collect();
    // While the clip is made its newest frame waits for the next; from then on it goes round.
    let whole = numbers.iter().position(|number| *number == FRAMES - 1).unwrap();
    assert_eq!(numbers[0], 0);
    assert!(
        numbers[..=whole].windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1),
        "{numbers:?}"
    );
    let round =
        &numbers[whole + numbers[whole..].iter().take_while(|number| **number == FRAMES - 1).count()..];
    assert!(round.len() >= 2 * FRAMES, "{numbers:?}");
    assert!(round.iter().enumerate().all(|(index, number)| *number == index % FRAMES), "{numbers:?}");

    // It began with noise, which is neither the clip nor flat.
    assert!(clip.iter().all(|frame| difference(&seen[0], frame) > 15.0));
    let mean = seen[0].iter().map(|grey| u32::from(*grey)).sum::<u32>() / seen[0].len() as u32;
    assert!(difference(&seen[0], &vec![u8::try_from(mean).unwrap(); seen[0].len()]) > 4.0);
    // And there was something in between.
    let between = seen[..before_clip].iter().filter(|picture| {
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
    let mut viewer = Viewer::connect(&["-rtsp_transport", "tcp", "-i", &address], None);
    viewer.watch_until(1);
    on_air.wait_for("done");
    viewer.catch_up();
    viewer.watch_until(viewer.times.len() + 2 * FRAMES + RATE);
    on_air.stop();
    let gap = viewer.longest_gap();
    assert!(gap <= 0.2, "{gap} s between two pictures: {:?}", viewer.times);
    assert!(folder.path().join("out.mp4").is_file(), "the clip went to its file as well");
}
