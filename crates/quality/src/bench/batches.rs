//! Compares step graphs on latents alone and in batches of two, bit by bit.
//!
//! Steps of several jobs may run as one batch only if no bit changes. Kernels may divide sums differently for other
//! sizes, so this is measured for each graph, on the machine that would run it.

use super::workload::latent_of_grid;
use crate::Error;
use bundle::manifest::{
    self, BatchConditions, BatchInvariance, Bundle, Component, GraphEntry, Manifest, Part,
};
use bundle::signature::ROWS_INPUT;
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use bundle::staging::WriteLock;
use bundle::units::Timestep;
use bundle::variant::{KernelLibrary, Target, Variant};
use engines::cpu::Cpu;
use engines::{Backend, Cancel, Engine, GraphSource, OpenOptions, Value, WeightMemory};
use export::synthetic::uniform;
use ndarray::{Array1, Array2, Array4, Array5, ArrayView4, Axis, Ix5, stack};
use runtime::denoise::{FrameLevels, RotaryTables, TextInput, TokenRows, token_rows};
use runtime::model::{step_contract, take_array};
use runtime::text_encoder::TextStates;
use std::num::NonZeroUsize;

/// Token grids `[frames, rows, columns]`: from one token to 780, with even and odd sides.
const GRIDS: [[usize; 3]; 5] = [[1, 1, 1], [1, 3, 5], [2, 8, 8], [3, 7, 14], [2, 15, 26]];
/// Noise levels of a step. The last one has a clean first frame, where the graph has several timesteps.
const LEVELS: [(Timestep, FrameLevels); 3] = [
    (Timestep(999.0), FrameLevels::Equal),
    (Timestep(417.5), FrameLevels::Equal),
    (Timestep(750.0), FrameLevels::CleanStart(1)),
];
/// Tokens of both prompts: as many, fewer in one of them, and the most.
const PROMPTS: [[usize; 2]; 3] = [[20, 20], [3, 60], [TEXT_ROWS, 1]];

/// Two latents with their prompts at one noise level. Steps of a batch have the same level.
#[derive(Debug, Clone)]
pub struct BatchCase {
    spec: DenoiserSpec,
    grid: [usize; 3],
    level: (Timestep, FrameLevels),
    prompts: [TextStates; 2],
    latents: [Array4<f32>; 2],
}

impl BatchCase {
    /// All cases for a model, always the same.
    pub fn all(spec: &DenoiserSpec) -> Vec<Self> {
        let grids = GRIDS.into_iter().enumerate();
        let cases = grids.flat_map(|(row, grid)| {
            LEVELS.into_iter().enumerate().map(move |(column, level)| (row, column, grid, level))
        });
        let cases = cases.filter(|(.., grid, (_, levels))| *levels == FrameLevels::Equal || grid[0] > 1);
        let mut state = 88_172_645_463_325_252_u64;
        cases
            .map(|(row, column, grid, level)| {
                let prompts = PROMPTS[(row + column) % PROMPTS.len()];
                let shape = latent_of_grid(spec, grid).dims();
                Self {
                    spec: spec.clone(),
                    grid,
                    level,
                    prompts: prompts.map(|tokens| text_states(tokens, spec.text_width, &mut state)),
                    latents: [(); 2].map(|()| Array4::from_shape_simple_fn(shape, || random(&mut state))),
                }
            })
            .collect()
    }

    /// True if the latent frames have different noise levels, for which the graph needs the input `rows`.
    pub fn needs_rows(&self) -> bool {
        self.level.1 != FrameLevels::Equal
    }

    /// The inputs of a call with these of the two latents, in this order.
    ///
    /// # Errors
    /// The grid does not fit the model.
    pub fn inputs(
        &self,
        kernels: KernelLibrary,
        takes_rows: bool,
        members: &[usize],
    ) -> Result<Vec<(&'static str, Value)>, Error> {
        let latent = latent_of_grid(&self.spec, self.grid);
        let tables = RotaryTables::new(&self.spec, latent);
        let levels = self.level.1.timesteps(self.level.0, latent.frames);
        let TokenRows { timesteps, rows } = token_rows(&levels, latent, self.spec.patch)?;
        let latents: Vec<ArrayView4<'_, f32>> =
            members.iter().map(|member| self.latents[*member].view()).collect();
        let latents: Array5<f32> = stack(Axis(0), &latents)
            .unwrap_or_else(|_| unreachable!("both latents have the shape of the grid"));
        let prompts: Vec<&TextStates> = members.iter().map(|member| &self.prompts[*member]).collect();
        let timesteps: Array1<f32> = timesteps.iter().map(|timestep| timestep.0).collect();
        let mut inputs = vec![
            ("latent", Value::from_f32(latents)),
            ("timestep", Value::from_f32(timesteps)),
            ("cos", Value::from_f32(tables.cos)),
            ("sin", Value::from_f32(tables.sin)),
        ];
        if takes_rows {
            inputs.push((ROWS_INPUT, Value::from_i64(Array1::from(rows))));
        }
        let text = TextInput::new(kernels, &prompts);
        inputs.extend(text.named().map(|(name, value)| (name, value.clone())));
        Ok(inputs)
    }
}

/// A value with mean 0 and variance 1.
fn random(state: &mut u64) -> f32 {
    uniform(state) * 12.0_f32.sqrt()
}

fn text_states(tokens: usize, width: usize, state: &mut u64) -> TextStates {
    let mut rows = Array2::zeros((TEXT_ROWS, width));
    rows.rows_mut().into_iter().take(tokens).flatten().for_each(|value| *value = random(state));
    TextStates::try_new(rows, tokens, None)
        .unwrap_or_else(|_| unreachable!("the rows after the tokens are zeros"))
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Comparison {
    /// Compared velocities: both latents of each case at both positions of the batch.
    pub compared: usize,
    /// Those of which a bit differs.
    pub different: usize,
    /// The largest absolute difference of a value; infinite if only one of two values is a number.
    pub largest: f32,
}

impl Comparison {
    /// True if all bits are equal.
    pub fn is_equal(&self) -> bool {
        self.different == 0
    }

    fn add(&mut self, alone: ArrayView4<'_, f32>, batched: ArrayView4<'_, f32>) {
        self.compared += 1;
        let pairs = || alone.iter().zip(&batched).filter(|(a, b)| a.to_bits() != b.to_bits());
        self.different += usize::from(alone.dim() != batched.dim() || pairs().next().is_some());
        for (alone, batched) in pairs() {
            let difference = (alone - batched).abs();
            self.largest = self.largest.max(if difference.is_nan() { f32::INFINITY } else { difference });
        }
    }
}

/// The step graphs of a bundle for the CPU: those of every variant of every expert.
pub fn step_graphs(manifest: &Manifest) -> Vec<(Component, GraphEntry)> {
    let experts = manifest.components.iter().filter(|entry| matches!(entry.component, Component::Expert(_)));
    let is_step = |graph: &&GraphEntry| graph.part == Part::Whole && graph.variant.target == Target::Cpu;
    let graphs = experts.flat_map(|entry| {
        let graphs = entry.graphs.iter().filter(is_step);
        graphs.map(|graph| (entry.component.clone(), graph.clone()))
    });
    graphs.collect()
}

/// The number of cases that are compared for a graph, at most.
pub fn case_count() -> usize {
    let of_grid = |grid: &[usize; 3]| {
        LEVELS.iter().filter(|(_, levels)| *levels == FrameLevels::Equal || grid[0] > 1).count()
    };
    GRIDS.iter().map(of_grid).sum()
}

/// What decides the bits of a comparison on this machine.
pub fn conditions(backend: &dyn Backend, options: &OpenOptions) -> BatchConditions {
    let info = backend.info();
    let cpu = Cpu::detect();
    BatchConditions {
        onnx_runtime: info.version,
        processor: cpu.full_name(),
        cpu_path: info.cpu_path.name().to_owned(),
        threads: options.threads.map_or(cpu.threads, NonZeroUsize::get),
        mapped_weights: options.weights == WeightMemory::Mapped,
    }
}

/// Compares a step graph of a bundle on all cases. `on_case` is called after each.
///
/// # Errors
/// The graph cannot be opened or fails, or the run is cancelled.
pub fn compare(
    backend: &dyn Backend,
    bundle: &Bundle,
    graph: &GraphEntry,
    options: &OpenOptions,
    cancel: &Cancel,
    on_case: &mut dyn FnMut(),
) -> Result<Comparison, Error> {
    let Variant { kernels, .. } = graph.variant;
    let contract = step_contract(&bundle.manifest, kernels);
    let path = bundle.path(&graph.file);
    let mut engine = Engine::open(backend, GraphSource::File(&path), &contract, options)?;
    let takes_rows = engine.signature().takes_rows();
    let mut found = Comparison::default();
    for case in BatchCase::all(&bundle.manifest.denoiser) {
        if takes_rows || !case.needs_rows() {
            let mut velocity = |members: &[usize]| {
                let inputs = case.inputs(kernels, takes_rows, members)?;
                let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
                Ok::<_, Error>(take_array::<Ix5>(&mut engine.run(&inputs, cancel)?, "velocity")?)
            };
            let alone = [velocity(&[0])?, velocity(&[1])?];
            for order in [[0, 1], [1, 0]] {
                let batch = velocity(&order)?;
                for (position, member) in order.into_iter().enumerate() {
                    found.add(alone[member].index_axis(Axis(0), 0), batch.index_axis(Axis(0), position));
                }
            }
        }
        on_case();
    }
    Ok(found)
}

/// Records results in `bundle.json`, each for the graph with this file. Results of other graphs stay.
///
/// # Errors
/// `bundle.json` cannot be written. It is unchanged in that case.
pub fn record(
    _writing: &WriteLock,
    bundle: &mut Bundle,
    found: &[(String, BatchInvariance)],
) -> Result<(), Error> {
    let mut manifest = bundle.manifest.clone();
    for graph in manifest.components.iter_mut().flat_map(|entry| &mut entry.graphs) {
        if let Some((_, found)) = found.iter().find(|(file, _)| *file == graph.file) {
            graph.batch_invariant = Some(found.clone());
        }
    }
    manifest::write(&bundle.folder, &manifest)?;
    bundle.manifest = manifest;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shape::{Subject, random_bundle};
    use crate::bench::variants;
    use bundle::catalog::wan_denoiser;
    use bundle::stop::Stop;
    use bundle::variant::Precision;
    use engines::OnnxRuntime;

    #[test]
    fn cases_have_all_sizes_levels_and_lengths_of_prompts() {
        let cases = BatchCase::all(&wan_denoiser(1, 1, 8));
        assert_eq!(cases.len(), case_count());
        assert_eq!(cases.iter().filter(|case| case.needs_rows()).count(), 3);
        for lengths in PROMPTS {
            assert!(cases.iter().any(|case| case.prompts.each_ref().map(TextStates::tokens) == lengths));
        }
        for case in &cases {
            assert!(case.latents[0] != case.latents[1] && case.prompts[0] != case.prompts[1]);
            for kernels in KernelLibrary::ALL {
                let inputs = case.inputs(kernels, true, &[1, 0]).unwrap();
                let shape =
                    |name: &str| inputs.iter().find(|(input, _)| *input == name).unwrap().1.shape().to_vec();
                assert_eq!((shape("latent")[0], shape("text")[0]), (2, 2));
                assert_eq!(shape("timestep"), [1 + usize::from(case.needs_rows())]);
            }
        }
        assert_ne!(cases[0].latents[0], cases[1].latents[0]);
    }

    #[test]
    fn one_bit_is_a_difference() {
        let alone = Array4::from_elem((1, 1, 1, 2), 1.0_f32);
        let mut found = Comparison::default();
        found.add(alone.view(), alone.view());
        assert_eq!(found, Comparison { compared: 1, different: 0, largest: 0.0 });
        assert!(found.is_equal());
        let mut batched = alone.clone();
        batched[[0, 0, 0, 1]] = f32::from_bits(1.0_f32.to_bits() + 1);
        found.add(alone.view(), batched.view());
        assert_eq!((found.compared, found.different, found.largest), (2, 1, f32::EPSILON));
        // Zeros of both signs are equal numbers with different bits.
        let mut signed = Comparison::default();
        signed.add(Array4::from_elem((1, 1, 1, 1), 0.0).view(), Array4::from_elem((1, 1, 1, 1), -0.0).view());
        assert_eq!(signed, Comparison { compared: 1, different: 1, largest: 0.0 });
        batched[[0, 0, 0, 0]] = f32::NAN;
        found.add(alone.view(), batched.view());
        assert_eq!((found.different, found.largest), (2, f32::INFINITY));
    }

    /// Compares as [`compare`] does, written again.
    fn directly(
        onnx: &OnnxRuntime,
        bundle: &Bundle,
        graph: &GraphEntry,
        options: &OpenOptions,
    ) -> [usize; 2] {
        let kernels = graph.variant.kernels;
        let contract = step_contract(&bundle.manifest, kernels);
        let mut engine = onnx.open(&bundle.path(&graph.file), &contract, options).unwrap();
        let takes_rows = engine.signature().takes_rows();
        let mut bits = |case: &BatchCase, members: &[usize]| -> Vec<Vec<u32>> {
            let inputs = case.inputs(kernels, takes_rows, members).unwrap();
            let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            let mut outputs = engine.run(&inputs, &Cancel::new()).unwrap();
            let velocity = outputs.take("velocity").unwrap().to_f32().unwrap();
            velocity.outer_iter().map(|one| one.iter().map(|value| value.to_bits()).collect()).collect()
        };
        let mut found = [0, 0];
        for case in BatchCase::all(&bundle.manifest.denoiser) {
            let alone: Vec<Vec<u32>> = [0, 1].iter().flat_map(|member| bits(&case, &[*member])).collect();
            for order in [[0, 1], [1, 0]] {
                for (position, batched) in bits(&case, &order).into_iter().enumerate() {
                    found[0] += 1;
                    found[1] += usize::from(batched != alone[order[position]]);
                }
            }
        }
        found
    }

    #[test]
    fn every_variant_is_compared_and_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let step = DenoiserSpec {
            heads: 2,
            head_width: 16,
            layers: 1,
            feed_forward: 64,
            text_width: 32,
            ..wan_denoiser(1, 1, 1)
        };
        let mut bundle = random_bundle(folder.path(), &Subject::Step(step), &Stop::new()).unwrap();
        let onnx = OnnxRuntime::load(None).unwrap();
        let wanted = [Precision::Int8, Precision::Bf16];
        variants::add(&mut bundle, &wanted, onnx.kernels(), &Stop::new()).unwrap();
        let graphs = step_graphs(&bundle.manifest);
        let names: Vec<String> = graphs.iter().map(|(_, graph)| graph.variant.to_string()).collect();
        let expected = ["cpu f32", "cpu int8", "cpu int8 on Rushes kernels", "cpu bf16 on Rushes kernels"];
        assert_eq!(names, expected);

        let options = OpenOptions::cpu(NonZeroUsize::new(2), WeightMemory::Prepacked);
        let on = conditions(&onnx, &options);
        assert_eq!((on.threads, on.mapped_weights), (2, false));
        let mut results = Vec::new();
        for (component, graph) in &graphs {
            assert_eq!(component.to_string(), "the only expert");
            let mut cases = 0;
            let found = compare(&onnx, &bundle, graph, &options, &Cancel::new(), &mut || cases += 1).unwrap();
            assert_eq!(cases, case_count());
            let direct = directly(&onnx, &bundle, graph, &options);
            assert_eq!([found.compared, found.different], direct, "{}", graph.variant);
            assert_eq!(found.compared, 4 * case_count());
            assert_eq!(found.largest > 0.0, !found.is_equal(), "{}: {found:?}", graph.variant);
            println!("{}: {found:?}", graph.variant);
            results.push((graph.file.clone(), BatchInvariance { equal: found.is_equal(), on: on.clone() }));
        }

        let writing = WriteLock::acquire(folder.path()).unwrap();
        // Only some are recorded; the others stay unknown.
        record(&writing, &mut bundle, &results[1..]).unwrap();
        let read = Bundle::read(folder.path()).unwrap();
        assert_eq!(read.manifest, bundle.manifest);
        let recorded = step_graphs(&read.manifest).into_iter().map(|(_, graph)| graph.batch_invariant);
        let recorded: Vec<Option<BatchInvariance>> = recorded.collect();
        assert_eq!(recorded[0], None);
        for (recorded, (_, found)) in recorded[1..].iter().zip(&results[1..]) {
            assert_eq!(recorded.as_ref(), Some(found));
        }
    }

    #[test]
    fn a_cancelled_comparison_ends() {
        let folder = tempfile::tempdir().unwrap();
        let step = DenoiserSpec { text_width: 16, ..wan_denoiser(1, 1, 16) };
        let bundle = random_bundle(folder.path(), &Subject::Step(step), &Stop::new()).unwrap();
        let onnx = OnnxRuntime::load(None).unwrap();
        let (_, graph) = &step_graphs(&bundle.manifest)[0];
        let options = OpenOptions::cpu(NonZeroUsize::new(1), WeightMemory::Mapped);
        let cancel = Cancel::new();
        let mut cases = 0;
        let ended = compare(&onnx, &bundle, graph, &options, &cancel, &mut || {
            cases += 1;
            cancel.cancel();
        });
        assert!(ended.unwrap_err().is_cancelled());
        assert_eq!(cases, 1);
    }
}
