//! The order of pictures of a live output: one for each tick.

/// Selects the next picture. The newest preview is repeated until the clip starts. The clip is shown frame by frame;
/// its newest frame is repeated until the next one is added. The complete clip is repeated.
#[derive(Debug, Clone)]
pub struct Playlist<T> {
    preview: Vec<T>,
    /// Ticks for which each picture of a preview is shown.
    hold: usize,
    /// Ticks since the first preview.
    shown: usize,
    clip: Vec<T>,
    complete: bool,
    /// The frame of the clip that is shown.
    frame: Option<usize>,
}

impl<T: Clone> Playlist<T> {
    /// A playlist that starts with one picture.
    pub fn new(first: T) -> Self {
        Self { preview: vec![first], hold: 1, shown: 0, clip: Vec::new(), complete: false, frame: None }
    }

    /// Replaces the preview. Each picture is shown for `hold` ticks; playback continues at the position of the previous
    /// preview. Has no effect once the clip has started.
    pub fn show(&mut self, pictures: Vec<T>, hold: usize) {
        if !pictures.is_empty() {
            self.preview = pictures;
            self.hold = hold.max(1);
        }
    }

    /// Adds a frame of the clip.
    pub fn add(&mut self, frame: T) {
        self.clip.push(frame);
    }

    /// Marks the clip as complete. It is repeated from now on.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Returns true if the clip is complete and its last frame is shown.
    pub fn is_at_end(&self) -> bool {
        let shown = self.frame.map_or(0, |frame| frame + 1);
        self.complete && shown == self.clip.len()
    }

    /// Returns true if the clip has started and previews are no longer shown.
    pub fn clip_has_started(&self) -> bool {
        !self.clip.is_empty()
    }

    /// Returns the picture of the next tick.
    pub fn tick(&mut self) -> T {
        let next = match self.frame {
            Some(frame) if frame + 1 < self.clip.len() => frame + 1,
            Some(frame) if !self.complete => frame,
            _ => 0,
        };
        if let Some(picture) = self.clip.get(next) {
            self.frame = Some(next);
            return picture.clone();
        }
        let picture = self.preview[self.shown / self.hold % self.preview.len()].clone();
        self.shown += 1;
        picture
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticks(playlist: &mut Playlist<u32>, count: usize) -> Vec<u32> {
        (0..count).map(|_| playlist.tick()).collect()
    }

    #[test]
    fn the_clip_follows_the_previews_waits_for_frames_and_is_repeated() {
        let mut playlist = Playlist::new(0);
        assert_eq!(ticks(&mut playlist, 2), [0, 0]);
        playlist.show(vec![10, 11], 2);
        assert_eq!(ticks(&mut playlist, 5), [11, 11, 10, 10, 11]);
        playlist.add(1);
        assert_eq!(ticks(&mut playlist, 3), [1, 1, 1]);
        playlist.add(2);
        playlist.add(3);
        playlist.show(vec![12], 1);
        assert_eq!(ticks(&mut playlist, 5), [2, 3, 3, 3, 3]);
        assert!(!playlist.is_at_end());
        let mut unseen = Playlist::new(0);
        unseen.add(1);
        unseen.complete();
        assert!(!unseen.is_at_end());
        playlist.complete();
        assert!(playlist.is_at_end());
        assert_eq!(ticks(&mut playlist, 5), [1, 2, 3, 1, 2]);
        assert!(!playlist.is_at_end());
    }

    #[test]
    fn a_frame_that_is_added_in_time_is_shown_at_the_next_tick() {
        let mut playlist = Playlist::new(0);
        for frame in 1..=4 {
            playlist.add(frame);
            assert_eq!(ticks(&mut playlist, 1), [frame]);
        }
        playlist.complete();
        assert_eq!(ticks(&mut playlist, 5), [1, 2, 3, 4, 1]);
    }

    #[test]
    fn a_preview_without_pictures_changes_nothing() {
        let mut playlist = Playlist::new(7);
        playlist.show(vec![], 0);
        assert_eq!(ticks(&mut playlist, 2), [7, 7]);
    }

    proptest! {
        #[test]
        fn no_frame_of_the_clip_is_skipped_or_out_of_order(
            gaps in prop::collection::vec(0_usize..4, 1..30), after in 60_usize..100,
        ) {
            let mut playlist = Playlist::new(usize::MAX);
            let mut shown = Vec::new();
            for (frame, gap) in gaps.iter().enumerate() {
                playlist.add(frame);
                shown.extend((0..*gap).map(|_| playlist.tick()));
            }
            playlist.complete();
            shown.extend((0..after).map(|_| playlist.tick()));
            let mut distinct = shown.clone();
            distinct.dedup();
            let round: Vec<usize> = (0..gaps.len()).cycle().take(distinct.len()).collect();
            prop_assert!(gaps.len() == 1 || distinct == round, "{shown:?}");
        }
    }
}
