//! Symbolic extents.

use bundle::signature::Extent;
use std::fmt;
use std::sync::Arc;

/// An extent as a product of a number and symbols, such as `2·height`.
///
/// Two dimensions are equal if their products are, so a reshape can be checked without knowing any size.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dim {
    factor: usize,
    symbols: Vec<Arc<str>>,
}

impl Dim {
    /// Creates an extent that is known at run time.
    pub fn symbol(name: &str) -> Self {
        Self { factor: 1, symbols: vec![name.into()] }
    }

    /// Returns the number, if it has no symbols.
    pub fn fixed(&self) -> Option<usize> {
        self.symbols.is_empty().then_some(self.factor)
    }

    /// Returns the product of two extents.
    pub fn times(&self, other: impl Into<Self>) -> Self {
        let other = other.into();
        let mut symbols: Vec<_> = self.symbols.iter().chain(&other.symbols).cloned().collect();
        symbols.sort_unstable();
        Self { factor: self.factor * other.factor, symbols }
    }

    /// Returns the product of all extents of a shape: its number of elements.
    pub fn product(shape: &[Self]) -> Self {
        shape.iter().fold(Self::from(1), |product, dim| product.times(dim.clone()))
    }

    pub(crate) fn factor(&self) -> usize {
        self.factor
    }

    pub(crate) fn symbols(&self) -> &[Arc<str>] {
        &self.symbols
    }

    /// Returns the extent as in a signature.
    pub fn extent(&self) -> Extent {
        match self.fixed() {
            Some(size) => Extent::Fixed(size),
            None => Extent::Dynamic(self.to_string()),
        }
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Self { factor: size, symbols: Vec::new() }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.factor != 1 || self.symbols.is_empty() {
            write!(f, "{}", self.factor)?;
        }
        for (position, symbol) in self.symbols.iter().enumerate() {
            let times = if position > 0 || self.factor != 1 { "*" } else { "" };
            write!(f, "{times}{symbol}")?;
        }
        Ok(())
    }
}

/// Prints a shape as `[1,2*H,W]`.
pub(crate) fn show(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(","))
}

/// Returns the shape that two operands broadcast to, or none if they do not.
///
/// Source: ONNX multidirectional broadcasting. A symbol is never assumed to be 1.
pub(crate) fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Dim], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(Dim::from(1), |axis| shape[axis].clone())
    };
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (a, b) if a == b => Some(a),
            (a, b) if a.fixed() == Some(1) => Some(b),
            (a, b) if b.fixed() == Some(1) => Some(a),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_equal_in_any_order() {
        let (h, w) = (Dim::symbol("H"), Dim::symbol("W"));
        assert_eq!(h.times(2).times(w.clone()), w.times(h.clone()).times(2));
        assert_ne!(h.times(2), w.times(2));
        assert_eq!(h.times(w).times(2).to_string(), "2*H*W");
        assert_eq!(Dim::from(1).to_string(), "1");
    }

    #[test]
    fn broadcasting_never_assumes_that_a_symbol_is_one() {
        let (b, one, three) = (Dim::symbol("B"), Dim::from(1), Dim::from(3));
        let batch = vec![b.clone(), three.clone()];
        assert_eq!(broadcast(&batch, &[one.clone(), three.clone()]), Some(batch.clone()));
        assert_eq!(broadcast(&batch, std::slice::from_ref(&three)), Some(batch));
        assert_eq!(broadcast(&[b, three.clone()], &[Dim::symbol("C"), one]), None);
        assert_eq!(broadcast(&[], std::slice::from_ref(&three)), Some(vec![three]));
    }
}
