//! The tensors of a file that change one module, and the changes that they make.

use super::LoraError;
use super::file::LoraFile;
use super::key::{Key, Naming, Part};
use crate::Error;
use crate::weights::delta::{Delta, Factor};
use std::collections::BTreeMap;

/// The form of the change of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// A product of two factors.
    Pair,
    /// The product of two products, element by element.
    LoHa,
    /// A Kronecker product.
    LoKr,
    /// A stored difference.
    Delta,
}

bundle::named!(Form, "LoRA" => Pair, "LoHa" => LoHa, "LoKr" => LoKr, "full deltas" => Delta);

/// The tensors of one module.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// The module, with `_` for every `.`.
    pub(super) module: String,
    pub(super) is_second: bool,
    pub(super) naming: Naming,
    /// The key of each part.
    keys: BTreeMap<Part, String>,
}

/// Which weight of a module changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Weight,
    Bias,
    Table,
}

/// A change of one weight of a module.
#[derive(Debug)]
pub(super) struct LayerChange {
    pub(super) which: Which,
    pub(super) form: Form,
    /// The factor that the file gives, without the strength.
    pub(super) scale: f64,
    pub(super) delta: Delta,
    /// The magnitudes, and true if there is one for each output.
    pub(super) magnitudes: Option<(bool, Vec<f32>)>,
    /// A key of the change, for errors.
    pub(super) key: String,
}

/// Groups keys by module. Returns also the keys that are not understood.
///
/// # Errors
/// Returns an error if two keys are the same part of a module.
pub(super) fn layers_of(file: &LoraFile) -> Result<(Vec<Layer>, Vec<String>), Error> {
    let mut layers: BTreeMap<(bool, String), Layer> = BTreeMap::new();
    let mut unknown = Vec::new();
    for text in file.keys() {
        let Some(Key { module, is_second, part, naming }) = Key::parse(text) else {
            unknown.push(text.to_owned());
            continue;
        };
        let layer = layers.entry((is_second, module.clone())).or_insert_with(|| Layer {
            module,
            is_second,
            naming,
            keys: BTreeMap::new(),
        });
        if let Some(other) = layer.keys.insert(part, text.to_owned()) {
            let why = format!("{other} is the same part of the same module");
            return Err(LoraError::Change { path: file.path().to_owned(), key: text.to_owned(), why }.into());
        }
    }
    Ok((layers.into_values().collect(), unknown))
}

impl Layer {
    /// Its keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.values().map(String::as_str)
    }

    pub(super) fn has(&self, part: Part) -> bool {
        self.keys.contains_key(&part)
    }

    /// The form of the change of its weight, by the parts that it has; none if only a bias or a table changes.
    pub(super) fn form(&self) -> Option<Form> {
        let any = |parts: &[Part]| parts.iter().any(|part| self.has(*part));
        if any(&[Part::Up, Part::Down]) {
            Some(Form::Pair)
        } else if any(&[Part::Hada1Up, Part::Hada1Down, Part::Hada2Up, Part::Hada2Down]) {
            Some(Form::LoHa)
        } else if any(&[
            Part::Lokr1,
            Part::Lokr1Up,
            Part::Lokr1Down,
            Part::Lokr2,
            Part::Lokr2Up,
            Part::Lokr2Down,
        ]) {
            Some(Form::LoKr)
        } else {
            None
        }
    }

    /// The keys that are part of no complete change, each with the reason.
    pub(super) fn incomplete(&self) -> Vec<(String, String)> {
        let mut left = Vec::new();
        let mut leave = |part: Part, why: &str| {
            left.extend(self.keys.get(&part).map(|key| (key.clone(), why.to_owned())));
        };
        leave(Part::SetWeight, "it replaces a weight, and only changes of weights can be applied");
        leave(Part::ReshapeWeight, "it gives a weight another shape");
        let sides: &[(&[Part], &[Part])] = &[
            (&[Part::Up], &[Part::Down]),
            (&[Part::Hada1Up], &[Part::Hada1Down]),
            (&[Part::Hada2Up], &[Part::Hada2Down]),
            (&[Part::Hada1Up], &[Part::Hada2Up]),
            (&[Part::Lokr1Up], &[Part::Lokr1Down]),
            (&[Part::Lokr2Up], &[Part::Lokr2Down]),
            (&[Part::Lokr1, Part::Lokr1Up], &[Part::Lokr2, Part::Lokr2Up]),
        ];
        let has = |parts: &[Part]| parts.iter().any(|part| self.has(*part));
        for (one, other) in sides {
            for (present, missing) in [(one, other), (other, one)] {
                if has(present) && !has(missing) {
                    present
                        .iter()
                        .for_each(|part| leave(*part, "the other factor of its product is missing"));
                }
            }
        }
        let without_form = "the change that it belongs to is missing";
        if self.form().is_none() {
            [Part::Alpha, Part::Magnitudes].iter().for_each(|part| leave(*part, without_form));
        }
        if !self.has(Part::Up) {
            [Part::UpBias, Part::Mid].iter().for_each(|part| leave(*part, without_form));
        }
        if !self.has(Part::Hada1Up) {
            [Part::Hada1Core, Part::Hada2Core].iter().for_each(|part| leave(*part, without_form));
        }
        if !self.has(Part::Lokr2Up) {
            leave(Part::Lokr2Core, without_form);
        }
        left.sort();
        left.dedup_by(|a, b| a.0 == b.0);
        left
    }

    /// Reads its complete changes. `module` is the name of the module in diffusers, by which settings are found.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be read, or if tensors do not fit each other.
    pub(super) fn changes(&self, file: &LoraFile, module: &str) -> Result<Vec<LayerChange>, Error> {
        let reader = Reader { file, keys: &self.keys };
        let alpha = reader.number(Part::Alpha)?;
        let factor = |rank: usize| file.scaling.factor(self.is_second, module, alpha, rank);
        let mut changes = Vec::new();
        let mut push = |which, form, scale, delta, part: Part| {
            let key = self.keys.get(&part).cloned().unwrap_or_default();
            changes.push(LayerChange { which, form, scale, delta, magnitudes: None, key });
        };
        match self.form() {
            Some(Form::Pair) if self.has(Part::Up) && self.has(Part::Down) => {
                let delta = reader.pair()?;
                let scale = factor(delta.rank().unwrap_or(1));
                push(Which::Weight, Form::Pair, scale, delta, Part::Down);
                if self.has(Part::UpBias) {
                    push(Which::Bias, Form::Delta, scale, reader.dense(Part::UpBias)?, Part::UpBias);
                }
            }
            Some(Form::LoHa) if self.incomplete().is_empty() => {
                let (delta, rank) = reader.hadamard()?;
                push(Which::Weight, Form::LoHa, factor(rank), delta, Part::Hada1Up);
            }
            Some(Form::LoKr) if self.incomplete().is_empty() => {
                let (delta, rank) = reader.kronecker()?;
                // Without a factored side there is no rank, and the alpha has no meaning.
                let scale = rank.map_or(1.0, factor);
                let part = if self.has(Part::Lokr1) { Part::Lokr1 } else { Part::Lokr1Up };
                push(Which::Weight, Form::LoKr, scale, delta, part);
            }
            _ => {}
        }
        for (part, which) in
            [(Part::Diff, Which::Weight), (Part::BiasDiff, Which::Bias), (Part::TableDiff, Which::Table)]
        {
            if self.has(part) {
                push(which, Form::Delta, 1.0, reader.dense(part)?, part);
            }
        }
        self.add_magnitudes(&reader, &mut changes)?;
        Ok(changes)
    }

    fn add_magnitudes(&self, reader: &Reader<'_>, changes: &mut [LayerChange]) -> Result<(), Error> {
        let Some(key) = self.keys.get(&Part::Magnitudes) else { return Ok(()) };
        let of_weight = changes.iter().filter(|change| change.which == Which::Weight).count();
        if of_weight > 1 {
            return Err(
                reader.wrong(key, "its weight has two changes, and the magnitudes are those of one".into())
            );
        }
        let Some(change) = changes.iter_mut().find(|change| change.which == Which::Weight) else {
            return Ok(());
        };
        let shape = reader.file.shape(key);
        let values = reader.file.read(key)?;
        // One value for each output, unless only the second extent is that of a vector.
        let of_outputs = !shape.is_empty() && shape.first() == change.delta.shape().first();
        change.magnitudes = Some((of_outputs, values));
        Ok(())
    }
}

/// Reads the tensors of a layer as matrices.
struct Reader<'a> {
    file: &'a LoraFile,
    keys: &'a BTreeMap<Part, String>,
}

impl Reader<'_> {
    fn wrong(&self, key: &str, why: String) -> Error {
        LoraError::Change { path: self.file.path().to_owned(), key: key.to_owned(), why }.into()
    }

    fn tensor(&self, part: Part) -> Result<(&str, &[usize], Vec<f32>), Error> {
        let key = self.keys.get(&part).map_or("", String::as_str);
        let values = self.file.read(key)?;
        if let Some(bad) = values.iter().position(|value| !value.is_finite()) {
            return Err(self.wrong(key, format!("its element {bad} is {}", values[bad])));
        }
        Ok((key, self.file.shape(key), values))
    }

    /// A tensor as a matrix: axes after the first are one.
    fn matrix(&self, part: Part) -> Result<Factor, Error> {
        let (key, shape, values) = self.tensor(part)?;
        match shape {
            [rows, columns @ ..] if !columns.is_empty() && !values.is_empty() => {
                Ok(Factor { shape: [*rows, columns.iter().product()], values: values.into() })
            }
            _ => Err(self.wrong(key, format!("its shape is {shape:?}; expected a matrix"))),
        }
    }

    /// One number; none if the layer has no such part.
    fn number(&self, part: Part) -> Result<Option<f64>, Error> {
        if !self.keys.contains_key(&part) {
            return Ok(None);
        }
        let (key, shape, values) = self.tensor(part)?;
        match values[..] {
            [value] => Ok(Some(f64::from(value))),
            _ => Err(self.wrong(key, format!("its shape is {shape:?}; expected one number"))),
        }
    }

    /// Refuses a product of tensors that no weight of a model has the size of.
    fn small(&self, part: Part, extents: [usize; 3]) -> Result<(), Error> {
        let elements = extents.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent));
        if elements.is_some_and(|elements| elements <= MAX_ELEMENTS) {
            return Ok(());
        }
        Err(self
            .wrong(self.keys.get(&part).map_or("", String::as_str), format!("its product is {extents:?}")))
    }

    fn dense(&self, part: Part) -> Result<Delta, Error> {
        let (_, shape, values) = self.tensor(part)?;
        Ok(Delta::Dense { shape: shape.to_vec(), values: values.into() })
    }

    fn fitting(&self, part: Part, delta: Delta) -> Result<Delta, Error> {
        match delta.fault() {
            None => {
                let shape = delta.shape();
                self.small(part, [shape[0], shape[1], 1])?;
                Ok(delta)
            }
            Some(why) => Err(self.wrong(self.keys.get(&part).map_or("", String::as_str), why)),
        }
    }

    fn pair(&self) -> Result<Delta, Error> {
        let (up, mut down) = (self.matrix(Part::Up)?, self.matrix(Part::Down)?);
        if self.keys.contains_key(&Part::Mid) {
            // Tucker: ΔW = Σ up[o,p]·mid[p,q,k]·down[q,i] for the positions k of a kernel.
            let core = self.core(Part::Mid)?;
            let [p, q, _] = core.0;
            if [up.shape[1], down.shape[0]] != [p, q] {
                let why = format!(
                    "its core is {:?} and its factors are {:?} and {:?}",
                    core.0, up.shape, down.shape
                );
                return Err(self.wrong(&self.keys[&Part::Mid], why));
            }
            self.small(Part::Mid, [p, down.shape[1], core.0[2]])?;
            down = through_core(&core, &down);
        }
        self.fitting(Part::Down, Delta::LowRank { up, down })
    }

    fn hadamard(&self) -> Result<(Delta, usize), Error> {
        let [a, b] = [self.matrix(Part::Hada1Up)?, self.matrix(Part::Hada1Down)?];
        let [c, d] = [self.matrix(Part::Hada2Up)?, self.matrix(Part::Hada2Down)?];
        let rank = b.shape[0];
        let mut halves = [[a, b], [c, d]];
        for (half, part) in halves.iter_mut().zip([Part::Hada1Core, Part::Hada2Core]) {
            if self.keys.contains_key(&part) {
                // Here the first factor is [rank,out], and the core is [rank,rank,…].
                let core = self.core(part)?;
                let [up, down] = half.clone();
                if [up.shape[0], down.shape[0]] != [core.0[0], core.0[1]] {
                    let why = format!(
                        "its core is {:?} and its factors are {:?} and {:?}",
                        core.0, up.shape, down.shape
                    );
                    return Err(self.wrong(&self.keys[&part], why));
                }
                self.small(part, [core.0[0], down.shape[1], core.0[2]])?;
                *half = [up.transposed(), through_core(&core, &down)];
            }
        }
        let [first, second] = halves;
        Ok((self.fitting(Part::Hada1Up, Delta::Hadamard { first, second })?, rank))
    }

    fn kronecker(&self) -> Result<(Delta, Option<usize>), Error> {
        let side = |whole: Part,
                    up: Part,
                    down: Part,
                    core: Option<Part>|
         -> Result<(Factor, Option<usize>), Error> {
            if self.keys.contains_key(&whole) {
                return Ok((self.matrix(whole)?, None));
            }
            let (mut left, mut right) = (self.matrix(up)?, self.matrix(down)?);
            let rank = right.shape[0];
            if let Some(part) = core.filter(|part| self.keys.contains_key(part)) {
                let core = self.core(part)?;
                if [left.shape[0], right.shape[0]] != [core.0[0], core.0[1]] {
                    let why = format!("its core is {:?}", core.0);
                    return Err(self.wrong(&self.keys[&part], why));
                }
                self.small(part, [core.0[0], right.shape[1], core.0[2]])?;
                (left, right) = (left.transposed(), through_core(&core, &right));
            }
            self.small(up, [left.shape[0], right.shape[1], 1])?;
            let delta = self.fitting(up, Delta::LowRank { up: left, down: right })?;
            Ok((product(&delta), Some(rank)))
        };
        let (left, first) = side(Part::Lokr1, Part::Lokr1Up, Part::Lokr1Down, None)?;
        let (right, second) = side(Part::Lokr2, Part::Lokr2Up, Part::Lokr2Down, Some(Part::Lokr2Core))?;
        let part = if self.keys.contains_key(&Part::Lokr1) { Part::Lokr1 } else { Part::Lokr1Up };
        Ok((self.fitting(part, Delta::Kronecker { left, right })?, second.or(first)))
    }

    /// The core of a Tucker decomposition, `[p,q,positions]`.
    fn core(&self, part: Part) -> Result<Core, Error> {
        let (key, shape, values) = self.tensor(part)?;
        match shape {
            [p, q, positions @ ..] if !values.is_empty() => {
                Ok(([*p, *q, positions.iter().product()], values))
            }
            _ => Err(self.wrong(key, format!("its shape is {shape:?}; expected a core of two or more axes"))),
        }
    }
}

/// The most elements of a product of small tensors: a weight of 16384x16384.
const MAX_ELEMENTS: usize = 1 << 28;

/// Shape `[p,q,positions]` and elements.
type Core = ([usize; 3], Vec<f32>);

/// `[p, inputs·positions]` from `core [p,q,positions]` and `down [q,inputs]`.
fn through_core(([p, q, positions], core): &Core, down: &Factor) -> Factor {
    let inputs = down.shape[1];
    let mut values = vec![0.0; p * inputs * positions];
    for row in 0..*p {
        for inner in 0..*q {
            let core = &core[(row * q + inner) * positions..][..*positions];
            for (input, down) in down.row(inner).iter().enumerate() {
                for (position, core) in core.iter().enumerate() {
                    values[(row * inputs + input) * positions + position] += core * down;
                }
            }
        }
    }
    Factor { shape: [*p, inputs * positions], values: values.into() }
}

/// The matrix of a change.
fn product(delta: &Delta) -> Factor {
    let shape = delta.shape();
    let (rows, columns) = (shape[0], shape[1]);
    let mut values = vec![0.0; rows * columns];
    let mut work = Vec::new();
    for (row, values) in values.chunks_mut(columns).enumerate() {
        delta.add_row((row, columns), 0..columns, values, &mut work);
    }
    Factor { shape: [rows, columns], values: values.into() }
}
