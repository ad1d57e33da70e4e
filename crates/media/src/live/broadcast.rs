//! The schedule of a live output. Pure: the caller passes the time.

use super::Playlist;
use bundle::units::FrameRate;
use serde::Serialize;
use std::time::Duration;

/// The next action of a publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<T> {
    /// Push this picture. The next may be due too.
    Push(T),
    /// Wait for this long.
    Wait(Duration),
}

/// Counts of the pictures that were pushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// All pictures.
    pub pictures: u64,
    /// Pictures before the first frame of the clip: noise and previews.
    pub before_clip: u64,
}

/// A playlist with a schedule: picture `n` is due `n` frames after the start. If the publisher is late, all overdue
/// pictures are due immediately, so that none is skipped.
#[derive(Debug, Clone)]
pub struct Broadcast<T> {
    playlist: Playlist<T>,
    rate: FrameRate,
    sent: Sent,
}

impl<T: Clone> Broadcast<T> {
    /// A broadcast that starts with one picture.
    pub fn new(first: T, rate: FrameRate) -> Self {
        Self { playlist: Playlist::new(first), rate, sent: Sent::default() }
    }

    /// The playlist.
    pub fn playlist(&mut self) -> &mut Playlist<T> {
        &mut self.playlist
    }

    /// Counts of the pictures that were pushed.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Returns the next action at `elapsed` time after the start.
    pub fn next_action(&mut self, elapsed: Duration) -> Action<T> {
        let due = self.rate.timestamp(self.sent.pictures, 1_000_000_000);
        let remaining = Duration::from_nanos(due).saturating_sub(elapsed);
        if !remaining.is_zero() {
            return Action::Wait(remaining);
        }
        self.sent.pictures += 1;
        self.sent.before_clip += u64::from(!self.playlist.clip_has_started());
        Action::Push(self.playlist.tick())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// All pictures that are due at a time, and the wait after them.
    fn due(broadcast: &mut Broadcast<u32>, elapsed: Duration) -> (Vec<u32>, Duration) {
        let mut pictures = Vec::new();
        loop {
            match broadcast.next_action(elapsed) {
                Action::Push(picture) => pictures.push(picture),
                Action::Wait(remaining) => return (pictures, remaining),
            }
        }
    }

    #[test]
    fn pictures_are_due_at_the_frame_rate() {
        let mut broadcast = Broadcast::new(7, FrameRate::try_new(8).unwrap());
        assert_eq!(due(&mut broadcast, Duration::ZERO), (vec![7], 125 * MILLISECOND));
        assert_eq!(due(&mut broadcast, 124 * MILLISECOND), (vec![], MILLISECOND));
        assert_eq!(due(&mut broadcast, 125 * MILLISECOND), (vec![7], 125 * MILLISECOND));
        // A second without a call is made up for.
        assert_eq!(due(&mut broadcast, 1125 * MILLISECOND), (vec![7; 8], 125 * MILLISECOND));
        assert_eq!(broadcast.sent(), Sent { pictures: 10, before_clip: 10 });
    }

    #[test]
    fn an_hour_at_29_97_fps_does_not_drift() {
        let mut broadcast = Broadcast::new(0, "29.97".parse().unwrap());
        let (pictures, _) = due(&mut broadcast, Duration::from_millis(3_603_600));
        assert_eq!(pictures.len(), 108_000 + 1);
    }

    /// An event of a broadcast.
    #[derive(Debug, Clone)]
    enum Event {
        /// Milliseconds pass before the publisher runs again.
        Time(u64),
        /// A preview with this many pictures is shown.
        Preview(u32),
        /// This many frames of the clip are added.
        Frames(u32),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0_u64..700).prop_map(Event::Time),
            (0_u32..4).prop_map(Event::Preview),
            (1_u32..6).prop_map(Event::Frames),
        ]
    }

    /// The number of the first picture of every preview.
    const PREVIEW: u32 = 1000;

    proptest! {
        #[test]
        fn no_picture_is_lost_repeated_or_late_in_any_interleaving(
            before in prop::collection::vec(event(), 0..40),
            after in prop::collection::vec(0_u64..700, 1..40),
            per_second in 1_u32..=30,
        ) {
            let rate = FrameRate::try_new(per_second).unwrap();
            let mut broadcast = Broadcast::new(PREVIEW, rate);
            let (mut now, mut frames, mut shown) = (0, 0, Vec::new());
            let run = |broadcast: &mut Broadcast<u32>, now: u64, shown: &mut Vec<u32>| {
                shown.extend(due(broadcast, Duration::from_millis(now)).0);
                // As many as are due, even if the publisher was late.
                assert_eq!(shown.len() as u64, now * u64::from(per_second) / 1000 + 1);
                assert_eq!(broadcast.sent().pictures, shown.len() as u64);
            };
            for event in before {
                match event {
                    Event::Time(milliseconds) => {
                        now += milliseconds;
                        run(&mut broadcast, now, &mut shown);
                    }
                    Event::Preview(pictures) => {
                        broadcast.playlist().show((0..pictures).map(|n| PREVIEW + n).collect(), 2);
                    }
                    Event::Frames(count) => {
                        (frames..frames + count).for_each(|frame| broadcast.playlist().add(frame));
                        frames += count;
                    }
                }
            }
            broadcast.playlist().add(frames);
            frames += 1;
            let completed_at = shown.len();
            broadcast.playlist().complete();
            for milliseconds in after {
                now += milliseconds;
                run(&mut broadcast, now, &mut shown);
            }

            let began = shown.iter().position(|picture| *picture < PREVIEW).unwrap_or(shown.len());
            prop_assert_eq!(broadcast.sent().before_clip, began as u64);
            let clip = &shown[began..];
            prop_assert!(clip.iter().all(|picture| *picture < PREVIEW), "no preview is shown after the first frame of the clip");
            for (index, pair) in clip.windows(2).enumerate() {
                let follows = pair[1] == (pair[0] + 1) % frames;
                // Until the clip is complete, its newest frame is repeated.
                let is_repeated = pair[1] == pair[0] && began + index + 1 < completed_at;
                prop_assert!(follows || is_repeated, "picture {} of {shown:?}", began + index + 1);
            }
        }
    }
}
