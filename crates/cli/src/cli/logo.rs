//! The value of `--logo`: a picture and a corner.

use bundle::{Error, Field};
use media::post_process::Corner;
use std::path::PathBuf;
use std::str::FromStr;

/// A picture and the corner that it is placed in.
#[derive(Debug, Clone)]
pub(super) struct Logo {
    /// The picture file.
    pub(super) path: PathBuf,
    pub(super) corner: Corner,
}

impl FromStr for Logo {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = text.rsplit_once('@').and_then(|(path, name)| {
            let corner = Corner::ALL.into_iter().find(|corner| corner.name() == name)?;
            (!path.is_empty()).then(|| Self { path: path.into(), corner })
        });
        found.ok_or_else(|| {
            let rule =
                "expected FILE@CORNER, where CORNER is top-left, top-right, bottom-left or bottom-right";
            Error::value(Field::Logo, format!("`{text}`"), rule, "write it like logo.png@bottom-right")
        })
    }
}
