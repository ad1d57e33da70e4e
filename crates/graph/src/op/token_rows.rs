//! Operators whose vectors depend on the token: token `l` uses row `rows[l]` of a table `[R,D]`.
//!
//! The map is i64 `[1,M]`. M is 1, for one row for all tokens, or the number of tokens. With one row the gathered
//! vectors have the size of a row, and the operators do the same work as with one vector.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;

/// Returns true if `rows` is a map for tables of the shape of `table`, over values of width `width`.
pub(super) fn is_table(table: &Tensor, rows: &Tensor, width: &Dim) -> bool {
    let is_map = rows.element() == ElementType::I64 && rows.rank() == 2 && rows.shape()[0].fixed() == Some(1);
    is_map && table.rank() == 2 && table.shape()[1] == *width
}

impl GraphBuilder {
    /// Layer normalisation of `x [B,L,D]`, then `· scale + shift`, rows of tables `[R,D]`. With several rows, L is the
    /// number of entries of the map.
    ///
    /// # Errors
    /// Returns an error if the shapes or the number formats do not match.
    pub fn layer_norm_by_row(
        &mut self,
        x: &Tensor,
        [scale, shift]: [&Tensor; 2],
        rows: &Tensor,
        epsilon: f64,
    ) -> Result<Tensor, Error> {
        let fits = x.rank() == 3
            && is_table(scale, rows, &x.from_last(1))
            && scale.shape() == shift.shape()
            && [scale, shift].iter().all(|table| table.element() == x.element());
        if !fits {
            let expected = "x [B,L,D], tables of scales and shifts [R,D] and rows [1,M]";
            return Err(self.mismatch("LayerNormalization", expected, &[x, scale, shift, rows]));
        }
        let (scale, shift) = (self.gather(scale, rows)?, self.gather(shift, rows)?); // [1,M,D]
        if self.is_plain() {
            return self.decomposed_modulated_norm(x, [&scale, &shift], epsilon);
        }
        Ok(self.layer_norm_node(x, [&scale, &shift], epsilon))
    }

    /// `x [B,L,D]` times rows of a table `[R,D]`.
    ///
    /// # Errors
    /// Returns an error if the shapes or the number formats do not match.
    pub fn multiply_by_row(&mut self, x: &Tensor, table: &Tensor, rows: &Tensor) -> Result<Tensor, Error> {
        let fits = x.rank() == 3 && is_table(table, rows, &x.from_last(1)) && table.element() == x.element();
        if !fits {
            return Err(self.mismatch("Mul", "x [B,L,D], a table [R,D] and rows [1,M]", &[x, table, rows]));
        }
        let vectors = self.gather(table, rows)?; // [1,M,D]
        Ok(self.broadcast_over_tokens("Mul", x, &vectors))
    }

    /// An operator of `x [B,L,D]` and `vectors [1,M,D]`, with M = 1 or L.
    pub(super) fn broadcast_over_tokens(
        &mut self,
        op_type: &'static str,
        x: &Tensor,
        vectors: &Tensor,
    ) -> Tensor {
        let shape = x.shape().to_vec();
        self.node_of_stated_shape(Operator::new(op_type), &[Some(x), Some(vectors)], x.element(), shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x [B,L,6]`, a table `[R,6]` and a map `[1,M]`.
    fn operands(g: &mut GraphBuilder) -> [Tensor; 3] {
        let x = g.input("x", ElementType::F32, &[Dim::symbol("B"), Dim::symbol("L"), 6.into()]);
        let table = g.input("table", ElementType::F32, &[Dim::symbol("R"), 6.into()]);
        let rows = g.input("rows", ElementType::I64, &[1.into(), Dim::symbol("M")]);
        [x, table, rows]
    }

    fn dump(mut g: GraphBuilder) -> String {
        let [x, table, rows] = operands(&mut g);
        let h = g.layer_norm_by_row(&x, [&table, &table], &rows, 1e-6).unwrap();
        let y = g.multiply_by_row(&h, &table, &rows).unwrap();
        assert_eq!(y.shape(), x.shape());
        g.output("y", &y).unwrap();
        let model = g.finish();
        let stated = &model.proto.graph.as_ref().unwrap().value_info;
        assert!(stated.iter().any(|value| value.name == y.name()), "the shape of the product is not known");
        model.dump()
    }

    #[test]
    fn vectors_are_gathered_once_per_operand() {
        insta::assert_snapshot!(dump(GraphBuilder::new("test")), @"
        input x f32 [B,L,6]
        input table f32 [R,6]
        input rows i64 [1,M]
        Gather = Gather(table, rows) {axis=0}
        Gather.2 = Gather(table, rows) {axis=0}
        LayerNormalization = LayerNormalization(x, Gather, Gather.2) {axis=-1, epsilon=0.000001}
        Gather.3 = Gather(table, rows) {axis=0}
        Mul = Mul(LayerNormalization, Gather.3)
        y = Identity(Mul)
        output y f32 [B,L,6]
        ");
    }

    #[test]
    fn plain_graphs_scale_and_shift_after_a_norm_without_parameters() {
        insta::assert_snapshot!(dump(GraphBuilder::plain("test")), @"
        input x f32 [B,L,6]
        input table f32 [R,6]
        input rows i64 [1,M]
        constant ones [6] f32 [6]
        constant zeros [6] f32 [6]
        Gather = Gather(table, rows) {axis=0}
        Gather.2 = Gather(table, rows) {axis=0}
        LayerNormalization = LayerNormalization(x, ones [6], zeros [6]) {axis=-1, epsilon=0.000001}
        Mul = Mul(LayerNormalization, Gather)
        Add = Add(Mul, Gather.2)
        Gather.3 = Gather(table, rows) {axis=0}
        Mul.2 = Mul(Add, Gather.3)
        y = Identity(Mul.2)
        output y f32 [B,L,6]
        ");
    }

    #[test]
    fn wrong_operands_are_refused() {
        let mut g = GraphBuilder::new("test");
        let [x, table, rows] = operands(&mut g);
        let vector = g.constant("vector", &[6], &[0.0; 6]).unwrap();
        let narrow = g.constant("narrow", &[1, 5], &[0.0; 5]).unwrap();
        let flat = g.integers("flat", &[2], &[0, 0]).unwrap();
        let half = g.cast(&table, ElementType::Bf16);
        for (scale, map) in
            [(&vector, &rows), (&narrow, &rows), (&half, &rows), (&table, &flat), (&table, &vector)]
        {
            assert!(g.layer_norm_by_row(&x, [scale, scale], map, 1e-6).is_err(), "{scale} {map}");
            assert!(g.multiply_by_row(&x, scale, map).is_err(), "{scale} {map}");
        }
        let two = g.constant("two", &[2, 6], &[0.0; 12]).unwrap();
        assert!(g.layer_norm_by_row(&x, [&table, &two], &rows, 1e-6).is_err());
        assert!(g.multiply_by_row(&table, &table, &rows).is_err());
    }
}
