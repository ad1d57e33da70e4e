//! When each picture of a live output is due, and which one it is. Pure: the time comes from outside.

use super::Playlist;
use bundle::units::FrameRate;
use serde::Serialize;
use std::time::Duration;

/// What is to be done at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn<T> {
    /// This picture is due; the next may be due already.
    Push(T),
    /// No picture is due for so long.
    Wait(Duration),
}

/// What was on so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// All pictures.
    pub pictures: u64,
    /// Those before the first frame of the clip: noise and previews.
    pub before_clip: u64,
}

/// A playlist on a time line: picture `n` is due `n` frames after the start, whatever happens. Behind time, it gives one
/// picture after the other until it has caught up, so that none is left out.
#[derive(Debug, Clone)]
pub struct Broadcast<T> {
    playlist: Playlist<T>,
    rate: FrameRate,
    sent: Sent,
}

impl<T: Clone> Broadcast<T> {
    /// A broadcast that begins with one picture.
    pub fn new(first: T, rate: FrameRate) -> Self {
        Self { playlist: Playlist::new(first), rate, sent: Sent::default() }
    }

    /// What is on.
    pub fn playlist(&mut self) -> &mut Playlist<T> {
        &mut self.playlist
    }

    /// What was on so far.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// What is to be done when so much time has passed since the start.
    pub fn turn(&mut self, elapsed: Duration) -> Turn<T> {
        let due = self.rate.timestamp(self.sent.pictures, 1_000_000_000);
        let left = Duration::from_nanos(due).saturating_sub(elapsed);
        if !left.is_zero() {
            return Turn::Wait(left);
        }
        self.sent.pictures += 1;
        self.sent.before_clip += u64::from(!self.playlist.clip_has_begun());
        Turn::Push(self.playlist.tick())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// All that is due at a moment, and how long nothing is due after that.
    fn due(broadcast: &mut Broadcast<u32>, elapsed: Duration) -> (Vec<u32>, Duration) {
        let mut pictures = Vec::new();
        loop {
            match broadcast.turn(elapsed) {
                Turn::Push(picture) => pictures.push(picture),
                Turn::Wait(left) => return (pictures, left),
            }
        }
    }

    #[test]
    fn pictures_are_due_one_frame_after_the_other() {
        let mut broadcast = Broadcast::new(7, FrameRate::try_new(8).unwrap());
        assert_eq!(due(&mut broadcast, Duration::ZERO), (vec![7], 125 * MILLISECOND));
        assert_eq!(due(&mut broadcast, 124 * MILLISECOND), (vec![], MILLISECOND));
        assert_eq!(due(&mut broadcast, 125 * MILLISECOND), (vec![7], 125 * MILLISECOND));
        // A second in which nothing ran is made up for.
        assert_eq!(due(&mut broadcast, 1125 * MILLISECOND), (vec![7; 8], 125 * MILLISECOND));
        assert_eq!(broadcast.sent(), Sent { pictures: 10, before_clip: 10 });
    }

    #[test]
    fn an_hour_at_a_rate_of_television_does_not_drift() {
        let mut broadcast = Broadcast::new(0, "29.97".parse().unwrap());
        let (pictures, _) = due(&mut broadcast, Duration::from_millis(3_603_600));
        assert_eq!(pictures.len(), 108_000 + 1);
    }

    /// What happens to a broadcast.
    #[derive(Debug, Clone)]
    enum Happens {
        /// So many milliseconds pass before its thread runs again.
        Time(u64),
        /// A preview of so many pictures is shown.
        Preview(u32),
        /// So many frames of the clip are ready.
        Frames(u32),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            (0_u64..700).prop_map(Happens::Time),
            (0_u32..4).prop_map(Happens::Preview),
            (1_u32..6).prop_map(Happens::Frames),
        ]
    }

    /// Pictures of previews have numbers from here on.
    const PREVIEW: u32 = 1000;

    proptest! {
        #[test]
        fn no_picture_is_lost_doubled_or_late_whatever_the_threads_do(
            before in prop::collection::vec(happens(), 0..40),
            after in prop::collection::vec(0_u64..700, 1..40),
            per_second in 1_u32..=30,
        ) {
            let rate = FrameRate::try_new(per_second).unwrap();
            let mut broadcast = Broadcast::new(PREVIEW, rate);
            let (mut now, mut frames, mut seen) = (0, 0, Vec::new());
            let run = |broadcast: &mut Broadcast<u32>, now: u64, seen: &mut Vec<u32>| {
                seen.extend(due(broadcast, Duration::from_millis(now)).0);
                // As many as the clock says, however late the thread was.
                assert_eq!(seen.len() as u64, now * u64::from(per_second) / 1000 + 1);
                assert_eq!(broadcast.sent().pictures, seen.len() as u64);
            };
            for what in before {
                match what {
                    Happens::Time(milliseconds) => {
                        now += milliseconds;
                        run(&mut broadcast, now, &mut seen);
                    }
                    Happens::Preview(pictures) => {
                        broadcast.playlist().show((0..pictures).map(|n| PREVIEW + n).collect(), 2);
                    }
                    Happens::Frames(count) => {
                        (frames..frames + count).for_each(|frame| broadcast.playlist().add(frame));
                        frames += count;
                    }
                }
            }
            broadcast.playlist().add(frames);
            frames += 1;
            let whole_at = seen.len();
            broadcast.playlist().complete();
            for milliseconds in after {
                now += milliseconds;
                run(&mut broadcast, now, &mut seen);
            }

            let began = seen.iter().position(|picture| *picture < PREVIEW).unwrap_or(seen.len());
            prop_assert_eq!(broadcast.sent().before_clip, began as u64);
            let clip = &seen[began..];
            prop_assert!(clip.iter().all(|picture| *picture < PREVIEW), "no preview comes after the clip has begun");
            for (index, pair) in clip.windows(2).enumerate() {
                let follows = pair[1] == (pair[0] + 1) % frames;
                // While the clip is made, its newest frame waits for the next.
                let waits = pair[1] == pair[0] && began + index + 1 < whole_at;
                prop_assert!(follows || waits, "picture {} of {seen:?}", began + index + 1);
            }
        }
    }
}
