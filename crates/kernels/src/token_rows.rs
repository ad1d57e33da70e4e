//! Maps of tokens to the rows of a table.
//!
//! A denoising step with several timesteps has one vector of a modulation per timestep: a table `[R,D]`. A token uses
//! the row of its timestep.

use crate::size::{SizeError, check};

/// The row of a table `[R,D]` that each token uses.
#[derive(Debug, Clone, Copy)]
pub struct TokenRows<'a>(Map<'a>);

#[derive(Debug, Clone, Copy)]
enum Map<'a> {
    /// Every token uses the only row.
    One,
    /// Token `t` uses row `rows[t % M]` of the `table` rows. Every entry is below `table`.
    Each { rows: &'a [i64], table: usize },
}

/// A map that does not fit its table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowMapError {
    /// The map has no entries.
    #[error("the map of tokens to rows is empty")]
    Empty,
    /// An entry is not a row of the table.
    #[error("token {token} is mapped to row {row} of a table of {rows} rows")]
    OutOfRange {
        /// The token.
        token: usize,
        /// Its entry.
        row: i64,
        /// Rows of the table.
        rows: usize,
    },
}

impl<'a> TokenRows<'a> {
    /// All tokens use the only row of a table.
    pub const ONE: Self = Self(Map::One);

    /// Creates a map from the row of each token, for tables of `table` rows. With fewer entries than tokens, the map
    /// repeats: one entry holds for all tokens, and the entries of one picture hold for each picture of a batch.
    ///
    /// # Errors
    /// There are no entries, or one is not in `0..table`.
    pub fn new(rows: &'a [i64], table: usize) -> Result<Self, RowMapError> {
        if rows.is_empty() {
            return Err(RowMapError::Empty);
        }
        let is_row = |row: i64| usize::try_from(row).is_ok_and(|row| row < table);
        if let Some(token) = rows.iter().position(|row| !is_row(*row)) {
            return Err(RowMapError::OutOfRange { token, row: rows[token], rows: table });
        }
        Ok(if table == 1 { Self::ONE } else { Self(Map::Each { rows, table }) })
    }

    /// Returns the number of rows of a table.
    pub(crate) fn table(self) -> usize {
        match self.0 {
            Map::One => 1,
            Map::Each { table, .. } => table,
        }
    }

    /// Returns the row of a token.
    #[inline(always)]
    pub(crate) fn of(self, token: usize) -> usize {
        match self.0 {
            Map::One => 0,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "`new` checked that every entry is a row of the table"
            )]
            Map::Each { rows, .. } => rows[token % rows.len()] as usize,
        }
    }

    /// Checks that the map repeats without a remainder over `tokens` tokens.
    pub(crate) fn check(self, tokens: usize) -> Result<(), SizeError> {
        match self.0 {
            Map::One => Ok(()),
            Map::Each { rows, .. } if tokens.is_multiple_of(rows.len()) => Ok(()),
            Map::Each { rows, .. } => check("rows of the tokens", rows.len(), tokens),
        }
    }
}

#[cfg(test)]
#[path = "token_rows_tests.rs"]
mod tests;
