//! Contact sheets: pictures of several clips in a grid, each with a label below it, as one PNG.

use crate::post_process::{Overlay, check_text, draw_text};
use crate::preview_files::{byte, encoded};
use bundle::geometry::PixelSize;
use bundle::{Diagnose, Report, atomic};
use ndarray::{Array3, ArrayView3};
use std::num::NonZeroUsize;
use std::path::Path;

/// The start of the PNG comment of every sheet.
const COMMENT: &str = "AI-generated contact sheet";
/// Pictures are shown at least this wide, in pixels, so that a label fits below them.
const MIN_WIDTH: usize = 240;
/// Pixels between cells and around them.
const GAP: usize = 8;
/// The aspect ratio of the screen that a sheet is laid out for.
const SCREEN: (usize, usize) = (16, 9);
/// The font sizes of labels, in pixels: the smallest, and the smallest and the largest usual one.
const FONT: (usize, usize, usize) = (10, 14, 40);
/// The grey of the sheet, in -1..1.
const BACKGROUND: f32 = -0.8;

/// The reason why a contact sheet cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContactSheetError {
    /// There is no picture.
    Empty,
    /// The sheet would be too large.
    TooLarge {
        /// The number of pictures.
        count: usize,
        /// The size of each.
        picture: PixelSize,
    },
    /// There are more or fewer pictures than labels.
    Count {
        /// The number of labels.
        labels: usize,
        /// The number of pictures.
        pictures: usize,
    },
    /// A picture has another shape than the others.
    Shape {
        /// The label of the picture.
        label: String,
        /// `[3,h,w]` of the others.
        expected: [usize; 3],
        /// The shape of the picture.
        found: [usize; 3],
    },
    /// A label is too long for the width of a picture.
    Label {
        /// The label.
        label: String,
        /// The width in pixels.
        width: usize,
    },
    /// A label cannot be drawn: an element or a font is missing.
    Text(#[from] crate::Error),
    /// The PNG cannot be encoded.
    Encoding {
        /// The reason.
        why: String,
    },
    /// The file cannot be written.
    File(#[from] bundle::Error),
}

impl Diagnose for ContactSheetError {
    fn report(&self) -> Report {
        let refused =
            |why: String, fix: &str| Report::bad_input("the contact sheet cannot be made", why, fix);
        match self {
            Self::Empty => refused("it has no picture".into(), "give at least one"),
            Self::TooLarge { count, picture } => refused(
                format!(
                    "a sheet of {count} pictures of {picture} has a side above {} pixels",
                    PixelSize::MAX_SIDE
                ),
                "make fewer or smaller pictures",
            ),
            Self::Count { labels, pictures } => refused(
                format!("the number of labels is {labels}, and that of pictures is {pictures}"),
                "give one picture for each label",
            ),
            Self::Shape { label, expected, found } => refused(
                format!("the picture `{label}` has the shape {found:?}, and the sheet is of {expected:?}"),
                "give pictures of one size",
            ),
            Self::Label { label, width } => refused(
                format!(
                    "the label `{label}` does not fit into {width} pixels, even in letters of {} pixels",
                    FONT.0
                ),
                "make it shorter",
            ),
            Self::Text(error) => error.report(),
            Self::Encoding { why } => {
                Report::failed("the contact sheet cannot be encoded", why.clone(), "report this as a bug")
            }
            Self::File(error) => error.report(),
        }
    }
}

bundle::display_as_report!(ContactSheetError);

/// A grid of labelled pictures. Everything but the pictures is checked and drawn when it is created, so that a label or
/// a font is refused before the pictures are made.
///
/// ```no_run
/// use media::ContactSheet;
/// use ndarray::Array3;
/// use std::num::NonZeroUsize;
/// use std::path::Path;
///
/// let labels = ["take 1 · seed 7", "take 2 · seed 8"].map(str::to_owned);
/// let sheet = ContactSheet::new(&labels, "832x480".parse()?, NonZeroUsize::MAX)?;
/// let takes = [Array3::zeros((3, 480, 832)), Array3::zeros((3, 480, 832))];
/// sheet.write(Path::new("takes.png"), &takes.each_ref().map(|take| take.view()), &[])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ContactSheet {
    grid: Grid,
    labels: Vec<Label>,
}

/// A label as text and as a picture. Nothing is drawn for a label without visible characters.
#[derive(Debug)]
struct Label {
    text: String,
    drawn: Option<Overlay>,
}

impl ContactSheet {
    /// A sheet of one picture of the size `picture` for each label, in rows from left to right, with at most
    /// `max_columns` columns. The number of columns is that with which the pictures are largest on a screen of 16:9.
    /// Narrow pictures are enlarged by a whole factor.
    ///
    /// # Errors
    /// Returns an error if there is no label, if the sheet would be too large, if a label does not fit below a picture,
    /// or if a font or an element for labels is missing (with its Debian package).
    pub fn new(
        labels: &[String],
        picture: PixelSize,
        max_columns: NonZeroUsize,
    ) -> Result<Self, ContactSheetError> {
        let grid = Grid::new(labels.len(), picture, max_columns)?;
        check_text(&labels.iter().map(String::as_str).collect::<Vec<_>>())?;
        let drawn = grid.drawn(labels)?;
        let labels = labels.iter().zip(drawn).map(|(text, drawn)| Label { text: text.clone(), drawn });
        Ok(Self { grid, labels: labels.collect() })
    }

    /// The size of the sheet.
    pub fn size(&self) -> PixelSize {
        self.grid.size
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.grid.columns
    }

    /// Draws the pictures, each `[3,h,w]` in -1..1, in the order of the labels. Returns the sheet as 8-bit RGB.
    ///
    /// # Errors
    /// Returns an error if there are more or fewer pictures than labels, or if one has another size.
    pub fn draw(&self, pictures: &[ArrayView3<'_, f32>]) -> Result<Vec<u8>, ContactSheetError> {
        let Grid { picture, factor, size, .. } = self.grid;
        if pictures.len() != self.labels.len() {
            let (labels, pictures) = (self.labels.len(), pictures.len());
            return Err(ContactSheetError::Count { labels, pictures });
        }
        let expected = [3, picture.height, picture.width];
        for (label, picture) in self.labels.iter().zip(pictures) {
            let found: [usize; 3] = picture.dim().into();
            if found != expected {
                return Err(ContactSheetError::Shape { label: label.text.clone(), expected, found });
            }
        }
        let mut sheet = vec![byte(BACKGROUND); 3 * size.width * size.height];
        for (index, (label, picture)) in self.labels.iter().zip(pictures).enumerate() {
            let (left, top) = self.grid.cell(index);
            paste(&mut sheet, size.width, picture.view(), (left, top), factor);
            if let Some(drawn) = &label.drawn {
                let Grid { strip, shown, .. } = self.grid;
                let mut under = Array3::from_elem((3, strip, shown.width), BACKGROUND);
                drawn.draw(&mut under);
                paste(&mut sheet, size.width, under.view(), (left, top + shown.height), 1);
            }
        }
        Ok(sheet)
    }

    /// Draws the pictures like [`Self::draw`] and writes a PNG, which replaces the file `path` when it is complete. Its
    /// comment marks it as AI-generated. `texts` are pairs of a PNG keyword (1 to 79 Latin-1 characters) and a text.
    ///
    /// # Errors
    /// The errors of [`Self::draw`]. Returns an error if a keyword is invalid or if the file cannot be written.
    pub fn write(
        &self,
        path: &Path,
        pictures: &[ArrayView3<'_, f32>],
        texts: &[(&str, &str)],
    ) -> Result<(), ContactSheetError> {
        Ok(atomic::write_atomic(path, &self.png(pictures, texts)?)?)
    }

    /// Draws the pictures like [`Self::draw`] and returns a PNG like that of [`Self::write`].
    ///
    /// # Errors
    /// The errors of [`Self::draw`]. Returns an error if a keyword is invalid.
    pub fn png(
        &self,
        pictures: &[ArrayView3<'_, f32>],
        texts: &[(&str, &str)],
    ) -> Result<Vec<u8>, ContactSheetError> {
        let sheet = self.draw(pictures)?;
        let comment = format!("{COMMENT} of {} takes", pictures.len());
        encoded(&sheet, self.grid.size, &comment, texts)
            .map_err(|error| ContactSheetError::Encoding { why: error.to_string() })
    }
}

/// Copies a picture `[3,h,w]` in -1..1, enlarged by a whole factor, to a place in a sheet of RGB bytes.
fn paste(
    sheet: &mut [u8],
    sheet_width: usize,
    picture: ArrayView3<'_, f32>,
    (left, top): (usize, usize),
    factor: usize,
) {
    let (_, height, width) = picture.dim();
    for y in 0..height * factor {
        let row = &mut sheet[3 * ((top + y) * sheet_width + left)..][..3 * width * factor];
        for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            *pixel = std::array::from_fn(|c| byte(picture[[c, y / factor, x / factor]]));
        }
    }
}

/// The geometry of a sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grid {
    /// The size of each picture.
    picture: PixelSize,
    /// Pictures are enlarged by this factor.
    factor: usize,
    /// The size of an enlarged picture.
    shown: PixelSize,
    /// Rows of a label, below its picture.
    strip: usize,
    columns: usize,
    size: PixelSize,
}

impl Grid {
    fn new(count: usize, picture: PixelSize, max_columns: NonZeroUsize) -> Result<Self, ContactSheetError> {
        if count == 0 || picture.width == 0 || picture.height == 0 {
            return Err(ContactSheetError::Empty);
        }
        let too_large = || ContactSheetError::TooLarge { count, picture };
        let factor = MIN_WIDTH.div_ceil(picture.width);
        let enlarged = |side: usize| side.checked_mul(factor).filter(|side| *side <= PixelSize::MAX_SIDE);
        let shown = enlarged(picture.width).zip(enlarged(picture.height));
        let (width, height) = shown.ok_or_else(too_large)?;
        let shown = PixelSize { width, height };
        // Two lines of the smaller font sizes.
        let strip = 2 * usual_font(shown.width);
        let sheet = |columns: usize| {
            let side = |cells: usize, cell: usize| cells.checked_mul(cell + GAP)?.checked_add(GAP);
            let (width, height) =
                (side(columns, shown.width)?, side(count.div_ceil(columns), shown.height + strip)?);
            let fits = width <= PixelSize::MAX_SIDE && height <= PixelSize::MAX_SIDE;
            fits.then_some((columns, PixelSize { width, height }))
        };
        let most = count.min(max_columns.get()).min(PixelSize::MAX_SIDE / shown.width);
        let (columns, size) = (1..=most)
            .filter_map(sheet)
            .min_by_key(|(_, size)| (size.width * SCREEN.1).max(size.height * SCREEN.0))
            .ok_or_else(too_large)?;
        Ok(Self { picture, factor, shown, strip, columns, size })
    }

    /// Column and row of the upper left corner of a picture in the sheet.
    fn cell(&self, index: usize) -> (usize, usize) {
        let (column, row) = (index % self.columns, index / self.columns);
        (GAP + column * (self.shown.width + GAP), GAP + row * (self.shown.height + self.strip + GAP))
    }

    /// Draws all labels with the largest font size at which each fits, at the centre of a strip.
    fn drawn(&self, labels: &[String]) -> Result<Vec<Option<Overlay>>, ContactSheetError> {
        let room = PixelSize { width: self.shown.width, height: self.strip };
        let mut pixels = usual_font(room.width);
        'sizes: loop {
            let mut all = vec![];
            for label in labels {
                if !label.chars().any(|c| !c.is_whitespace() && !c.is_control()) {
                    all.push(None);
                } else if let Some(drawn) = draw_text(label, pixels, room)? {
                    let top = (room.height - drawn.height()) / 2;
                    all.push(Some(drawn.moved_to(top)));
                } else if pixels > FONT.0 {
                    pixels = (pixels * 7 / 8).max(FONT.0);
                    continue 'sizes;
                } else {
                    return Err(ContactSheetError::Label { label: label.clone(), width: room.width });
                }
            }
            return Ok(all);
        }
    }
}

/// The usual font size of labels below pictures of a width.
fn usual_font(width: usize) -> usize {
    (width / 17).clamp(FONT.1, FONT.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANY: NonZeroUsize = NonZeroUsize::MAX;

    fn size(text: &str) -> PixelSize {
        text.parse().unwrap()
    }

    fn columns(count: usize, picture: &str) -> usize {
        Grid::new(count, size(picture), ANY).unwrap().columns
    }

    fn labels(count: usize) -> Vec<String> {
        (1..=count).map(|take| format!("take {take} · seed {}", 1233 + take)).collect()
    }

    /// A picture of one colour with a white pixel in its upper left corner.
    fn picture(number: usize, size: PixelSize) -> Array3<f32> {
        let colour = colour(number).map(|byte| f32::from(byte) / 127.5 - 1.0);
        let mut picture = Array3::from_shape_fn((3, size.height, size.width), |(c, _, _)| colour[c]);
        picture.slice_mut(ndarray::s![.., 0, 0]).fill(1.0);
        picture
    }

    fn colour(number: usize) -> [u8; 3] {
        let number = u8::try_from(number).unwrap();
        [20 + 25 * number, 240 - 25 * number, 100]
    }

    #[test]
    fn pictures_are_as_large_as_they_can_be_on_a_screen() {
        for picture in ["832x480", "160x96"] {
            assert_eq!([1, 2, 4, 6, 9, 16].map(|count| columns(count, picture)), [1, 2, 2, 3, 3, 4]);
        }
        assert_eq!(columns(9, "480x832"), 5, "portrait");
        let narrow = Grid::new(9, size("832x480"), NonZeroUsize::new(2).unwrap()).unwrap();
        assert_eq!((narrow.columns, narrow.cell(8).0), (2, GAP), "five rows");
    }

    #[test]
    fn small_pictures_are_enlarged_by_whole_factors() {
        for (picture, factor) in [("160x96", 2), ("240x96", 1), ("239x96", 2), ("16x16", 15), ("832x480", 1)]
        {
            let grid = Grid::new(1, size(picture), ANY).unwrap();
            assert_eq!(grid.factor, factor, "{picture}");
            assert_eq!(grid.shown.width, factor * size(picture).width);
        }
    }

    #[test]
    fn sheets_without_pictures_or_of_too_many_are_refused() {
        for empty in [Grid::new(0, size("160x96"), ANY), Grid::new(1, PixelSize { width: 0, height: 9 }, ANY)]
        {
            assert!(matches!(empty, Err(ContactSheetError::Empty)));
        }
        for (count, width, height) in
            [(10_000, 832, 480), (usize::MAX, 16, 16), (1, usize::MAX, 9), (1, 1, 16_384)]
        {
            let error = Grid::new(count, PixelSize { width, height }, ANY).unwrap_err();
            assert!(matches!(error, ContactSheetError::TooLarge { .. }), "{error}");
        }
        assert!(matches!(ContactSheet::new(&[], size("160x96"), ANY), Err(ContactSheetError::Empty)));
    }

    #[test]
    fn nine_takes_of_the_small_model_are_where_they_should_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("takes.png");
        let takes = size("160x96");
        let sheet = ContactSheet::new(&labels(9), takes, ANY).unwrap();
        let pictures: Vec<_> = (0..9).map(|number| picture(number, takes)).collect();
        let views: Vec<_> = pictures.iter().map(|picture| picture.view()).collect();
        sheet.write(&path, &views, &[("Rushes", "一次")]).unwrap();
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["takes.png"], "no part is left");

        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let found = PixelSize { width: info.width as usize, height: info.height as usize };
        assert_eq!((found, sheet.columns()), (sheet.size(), 3));
        // Three pictures of 320x192 with labels of 36 rows, and gaps.
        assert_eq!(found, size("992x716"));
        let comment = &reader.info().uncompressed_latin1_text[0];
        assert_eq!(comment.text, "AI-generated contact sheet of 9 takes");
        assert_eq!(reader.info().utf8_text[0].get_text().unwrap(), "一次");

        let at = |x: usize, y: usize| <[u8; 3]>::try_from(&pixels[3 * (y * found.width + x)..][..3]).unwrap();
        let background = [byte(BACKGROUND); 3];
        for number in 0..9 {
            let (left, top) = sheet.grid.cell(number);
            let corners = [(2, 0), (319, 0), (0, 191), (319, 191), (160, 96)];
            for (x, y) in corners {
                assert_eq!(at(left + x, top + y), colour(number), "{number} at {x},{y}");
            }
            assert_eq!(at(left + 1, top + 1), [255; 3], "the first pixel is two wide and two high");
            for (x, y) in [(left - 1, top), (left, top - 1), (left + 320, top), (left, top + 192 + 36)] {
                assert_eq!(at(x, y), background, "the gap around {number}");
            }
            let strip = (0..36).flat_map(|y| (0..320).map(move |x| (left + x, top + 192 + y)));
            let light = strip.filter(|(x, y)| at(*x, *y).iter().all(|byte| *byte > 150)).count();
            assert!(light > 100, "the label of {number} has {light} light pixels");
        }
    }

    #[test]
    fn labels_fit_or_are_refused() {
        let takes = size("160x96");
        let seed = format!("take 12 · seed {}", u64::MAX);
        for text in [&*seed, "A < B & C", "", " "] {
            ContactSheet::new(&[text.to_owned()], takes, ANY).unwrap();
        }
        let error = ContactSheet::new(&["long ".repeat(60)], takes, ANY).unwrap_err();
        assert!(matches!(error, ContactSheetError::Label { .. }), "{error}");
    }

    #[test]
    fn pictures_of_another_number_or_size_are_refused_by_name() {
        let takes = size("160x96");
        let sheet = ContactSheet::new(&labels(2), takes, ANY).unwrap();
        let (one, other) = (picture(0, takes), picture(1, size("160x90")));
        let error = sheet.draw(&[one.view()]).unwrap_err();
        insta::assert_snapshot!(error, @"the contact sheet cannot be made: the number of labels is 2, and that of pictures is 1 (give one picture for each label)");
        let error = sheet.draw(&[one.view(), other.view()]).unwrap_err();
        insta::assert_snapshot!(error, @"the contact sheet cannot be made: the picture `take 2 · seed 1235` has the shape [3, 90, 160], and the sheet is of [3, 96, 160] (give pictures of one size)");
    }

    proptest! {
        #[test]
        fn cells_are_inside_the_sheet_and_do_not_overlap(
            count in 1_usize..40,
            width in 1_usize..1300,
            height in 1_usize..1300,
            most in 1_usize..12,
        ) {
            let picture = PixelSize { width, height };
            let Ok(grid) = Grid::new(count, picture, NonZeroUsize::new(most).unwrap()) else { return Ok(()) };
            prop_assert!(grid.columns <= most.min(count) && grid.shown.width >= MIN_WIDTH);
            let cells: Vec<_> = (0..count).map(|index| grid.cell(index)).collect();
            for (index, (left, top)) in cells.iter().enumerate() {
                prop_assert!(left + grid.shown.width + GAP <= grid.size.width);
                prop_assert!(top + grid.shown.height + grid.strip + GAP <= grid.size.height);
                for (other_left, other_top) in &cells[..index] {
                    let apart = left.abs_diff(*other_left) >= grid.shown.width + GAP
                        || top.abs_diff(*other_top) >= grid.shown.height + grid.strip + GAP;
                    prop_assert!(apart);
                }
            }
        }
    }
}
