//! The extents of a graph's inputs for clips of one shape.

use crate::EngineShape;
use bundle::geometry::Patch;

/// The decoder's layers enlarge its latent up to this many times in each direction.
const LARGEST_SCALE: i64 = 16;

/// The symbols of a graph's inputs with their extents, as exported graphs write them: products of a number and names in
/// alphabetical order, such as `2*rows`.
///
/// Steps have the symbols `B`, `R`, `M`, `frames`, `rows` and `columns`; decoders have `h` and `w`. A symbol that a graph
/// does not have is ignored. All tokens have one timestep, as in clips from text.
pub(crate) fn extents(shape: EngineShape, patch: Patch) -> Vec<(String, i64)> {
    let EngineShape { frames, height, width, batch } = shape;
    let sides = [(frames, patch.time), (height, patch.height), (width, patch.width)];
    let [frames, rows, columns] =
        sides.map(|(extent, patch)| i64::from(extent) / i64::try_from(patch.max(1)).unwrap_or(i64::MAX));
    let tokens = frames.saturating_mul(rows).saturating_mul(columns);
    let mut found = vec![
        ("B".to_owned(), i64::from(batch)),
        ("R".to_owned(), 1),
        ("M".to_owned(), tokens),
        ("columns*frames*rows".to_owned(), tokens),
    ];
    let grid =
        [("frames", frames, patch.time), ("rows", rows, patch.height), ("columns", columns, patch.width)];
    for (name, extent, patch) in grid {
        found.push((name.to_owned(), extent));
        if let Some(patch) = i64::try_from(patch).ok().filter(|patch| *patch > 1) {
            found.push((format!("{patch}*{name}"), extent.saturating_mul(patch)));
        }
    }
    for (name, extent) in [("h", height), ("w", width)] {
        found.push((name.to_owned(), i64::from(extent)));
        let scales = (2..=LARGEST_SCALE).map(|scale| (format!("{scale}*{name}"), scale * i64::from(extent)));
        found.extend(scales);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_symbols_of_steps_and_decoders_have_extents() {
        let shape = EngineShape { frames: 5, height: 60, width: 104, batch: 1 };
        let found: BTreeMap<String, i64> =
            extents(shape, Patch { time: 1, height: 2, width: 2 }).into_iter().collect();
        for (symbol, extent) in [
            ("B", 1),
            ("R", 1),
            ("M", 5 * 30 * 52),
            ("columns*frames*rows", 5 * 30 * 52),
            ("frames", 5),
            ("rows", 30),
            ("2*rows", 60),
            ("2*columns", 104),
            ("h", 60),
            ("8*w", 832),
        ] {
            assert_eq!(found.get(symbol), Some(&extent), "{symbol}");
        }
        assert!(!found.contains_key("1*frames"));
    }
}
