//! Operators with a vector for each token, or one for all: `vectors [1,M,D]`, where M is the number of tokens or 1.
//!
//! The vectors are rows of a table `[R,D]`, gathered by a map i64 `[1,M]`. The graph is the same for both: with M = 1,
//! the operators do the same work as with a vector `[D]`. Operators of the domain `rushes` take the table and the map
//! instead.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;

/// Returns true if `table` is `[R,width]` and `rows` a map for it.
pub(super) fn is_table(table: &Tensor, rows: &Tensor, width: &Dim) -> bool {
    let is_map = rows.element() == ElementType::I64 && rows.rank() == 2 && rows.shape()[0].fixed() == Some(1);
    is_map && table.rank() == 2 && table.shape()[1] == *width
}

/// Returns true if `vectors` is `[1,M,D]` for `x [B,L,D]`, in the same number format.
fn has_vectors(x: &Tensor, vectors: &Tensor) -> bool {
    x.rank() == 3
        && vectors.rank() == 3
        && vectors.shape()[0].fixed() == Some(1)
        && vectors.shape()[2] == x.shape()[2]
        && vectors.element() == x.element()
}

impl GraphBuilder {
    /// Layer normalisation of `x [B,L,D]`, then `· scale + shift`, both `[1,M,D]`.
    ///
    /// # Errors
    /// Returns an error if the shapes or the number formats do not match.
    pub fn layer_norm_of_tokens(
        &mut self,
        x: &Tensor,
        [scale, shift]: [&Tensor; 2],
        epsilon: f64,
    ) -> Result<Tensor, Error> {
        if !has_vectors(x, scale) || !has_vectors(x, shift) || scale.shape() != shift.shape() {
            let expected = "x [B,L,D], a scale and a shift [1,M,D]";
            return Err(self.mismatch("LayerNormalization", expected, &[x, scale, shift]));
        }
        if self.is_plain() {
            return self.decomposed_norm_of_tokens(x, [scale, shift], epsilon);
        }
        Ok(self.layer_norm_node(x, [scale, shift], epsilon))
    }

    /// `x [B,L,D]` times `vectors [1,M,D]`.
    ///
    /// # Errors
    /// Returns an error if the shapes or the number formats do not match.
    pub fn multiply_tokens(&mut self, x: &Tensor, vectors: &Tensor) -> Result<Tensor, Error> {
        if !has_vectors(x, vectors) {
            return Err(self.mismatch("Mul", "x [B,L,D] and vectors [1,M,D]", &[x, vectors]));
        }
        Ok(self.with_vectors("Mul", x, vectors))
    }

    /// An operator of `x [B,L,D]` and `vectors [1,M,D]`, which broadcast to `x`.
    pub(super) fn with_vectors(&mut self, op_type: &'static str, x: &Tensor, vectors: &Tensor) -> Tensor {
        let shape = x.shape().to_vec();
        self.node(Operator::new(op_type), &[Some(x), Some(vectors)], x.element(), shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x [B,L,6]` and vectors `[1,M,6]`.
    fn operands(g: &mut GraphBuilder) -> [Tensor; 2] {
        let x = g.input("x", ElementType::F32, &[Dim::symbol("B"), Dim::symbol("L"), 6.into()]);
        let vectors = g.input("vectors", ElementType::F32, &[1.into(), Dim::symbol("M"), 6.into()]);
        [x, vectors]
    }

    fn dump(mut g: GraphBuilder) -> String {
        let [x, vectors] = operands(&mut g);
        let h = g.layer_norm_of_tokens(&x, [&vectors, &vectors], 1e-6).unwrap();
        let y = g.multiply_tokens(&h, &vectors).unwrap();
        assert_eq!(y.shape(), x.shape());
        g.output("y", &y).unwrap();
        g.finish().unwrap().dump()
    }

    #[test]
    fn a_norm_and_a_product_take_the_vectors_directly() {
        insta::assert_snapshot!(dump(GraphBuilder::new("test")), @"
        input x f32 [B,L,6]
        input vectors f32 [1,M,6]
        LayerNormalization = LayerNormalization(x, vectors, vectors) {axis=-1, epsilon=0.000001}
        Mul = Mul(LayerNormalization, vectors)
        y = Identity(Mul)
        output y f32 [B,L,6]
        ");
    }

    #[test]
    fn plain_graphs_scale_and_shift_after_a_norm_without_parameters() {
        insta::assert_snapshot!(dump(GraphBuilder::plain("test")), @"
        input x f32 [B,L,6]
        input vectors f32 [1,M,6]
        constant ones [6] f32 [6]
        constant zeros [6] f32 [6]
        LayerNormalization = LayerNormalization(x, ones [6], zeros [6]) {axis=-1, epsilon=0.000001}
        Mul = Mul(LayerNormalization, vectors)
        Add = Add(Mul, vectors)
        Mul.2 = Mul(Add, vectors)
        y = Identity(Mul.2)
        output y f32 [B,L,6]
        ");
    }

    #[test]
    fn wrong_operands_are_refused() {
        let mut g = GraphBuilder::new("test");
        let [x, vectors] = operands(&mut g);
        let flat = g.constant("flat", &[6], &[0.0; 6]).unwrap();
        let narrow = g.constant("narrow", &[1, 1, 5], &[0.0; 5]).unwrap();
        let batch = g.constant("batch", &[2, 1, 6], &[0.0; 12]).unwrap();
        let half = g.cast(&vectors, ElementType::Bf16);
        for wrong in [&flat, &narrow, &batch, &half] {
            assert!(g.layer_norm_of_tokens(&x, [wrong, wrong], 1e-6).is_err(), "{wrong}");
            assert!(g.layer_norm_of_tokens(&x, [&vectors, wrong], 1e-6).is_err(), "{wrong}");
            assert!(g.multiply_tokens(&x, wrong).is_err(), "{wrong}");
        }
        assert!(g.multiply_tokens(&flat, &vectors).is_err());
        let one = g.constant("one", &[1, 1, 6], &[0.0; 6]).unwrap();
        assert!(g.layer_norm_of_tokens(&x, [&vectors, &one], 1e-6).is_err(), "two numbers of tokens");
    }

    #[test]
    fn tables_have_the_width_of_the_values_and_maps_one_line_of_i64() {
        let mut g = GraphBuilder::new("test");
        let table = g.constant("table", &[2, 6], &[0.0; 12]).unwrap();
        let map = g.integers("map", &[1, 3], &[0, 1, 1]).unwrap();
        let flat = g.integers("flat", &[3], &[0, 1, 1]).unwrap();
        assert!(is_table(&table, &map, &6.into()));
        for (table, map, width) in
            [(&table, &map, 5), (&table, &flat, 6), (&table, &table, 6), (&flat, &map, 6)]
        {
            assert!(!is_table(table, map, &width.into()), "{table} {map}");
        }
    }
}
