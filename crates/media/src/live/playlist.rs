//! What is on: one picture for each tick of a clock that never stops.

/// Which picture comes next. Previews go round until the clip begins; the clip goes on frame by frame, waits on its
/// newest frame where the next is not made yet, and goes round once it is whole.
#[derive(Debug, Clone)]
pub struct Playlist<T> {
    preview: Vec<T>,
    /// Ticks for which each picture of a preview is on.
    hold: usize,
    /// Ticks since the preview began.
    shown: usize,
    clip: Vec<T>,
    whole: bool,
    /// The frame of the clip that is on.
    frame: Option<usize>,
}

impl<T: Clone> Playlist<T> {
    /// A playlist that begins with one picture.
    pub fn new(first: T) -> Self {
        Self { preview: vec![first], hold: 1, shown: 0, clip: Vec::new(), whole: false, frame: None }
    }

    /// Shows a preview from now on, each of its pictures for `hold` ticks, going on where the older one was. Of no use
    /// once the clip has begun.
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

    /// No frame comes any more: the clip goes round from now on.
    pub fn complete(&mut self) {
        self.whole = true;
    }

    /// Whether frames of the clip are on, and no previews any more.
    pub fn clip_has_begun(&self) -> bool {
        !self.clip.is_empty()
    }

    /// The picture of the next tick.
    pub fn tick(&mut self) -> T {
        let next = match self.frame {
            Some(frame) if frame + 1 < self.clip.len() => frame + 1,
            Some(frame) if !self.whole => frame,
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
    fn previews_give_way_to_the_clip_which_waits_and_then_goes_round() {
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
        playlist.complete();
        assert_eq!(ticks(&mut playlist, 5), [1, 2, 3, 1, 2]);
    }

    #[test]
    fn a_frame_that_comes_in_time_is_on_at_once() {
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
        fn no_frame_of_the_clip_is_left_out_or_out_of_order(
            gaps in prop::collection::vec(0_usize..4, 1..30), after in 60_usize..100,
        ) {
            let mut playlist = Playlist::new(usize::MAX);
            let mut seen = Vec::new();
            for (frame, gap) in gaps.iter().enumerate() {
                playlist.add(frame);
                seen.extend((0..*gap).map(|_| playlist.tick()));
            }
            playlist.complete();
            seen.extend((0..after).map(|_| playlist.tick()));
            let mut distinct = seen.clone();
            distinct.dedup();
            let round: Vec<usize> = (0..gaps.len()).cycle().take(distinct.len()).collect();
            prop_assert!(gaps.len() == 1 || distinct == round, "{seen:?}");
        }
    }
}
