//! The precisions that a model can run in, and the precision of each component in them.

use super::{Component, ComponentEntry, GraphEntry, Manifest};
use crate::variant::{KernelLibrary, Precision, Target};

impl Manifest {
    /// Returns the precision that names the exported variant: that of the experts, or of the other components if there
    /// are no experts. If they differ, it is the first in the order of [`Precision::ALL`].
    pub fn exported_precision(&self) -> Precision {
        let first = |fits: fn(&Component) -> bool| {
            let entries = self.components.iter().filter(|entry| fits(&entry.component));
            let exported: Vec<Precision> = entries.map(ComponentEntry::exported_precision).collect();
            Precision::ALL.into_iter().find(|precision| exported.contains(precision))
        };
        let of_experts = first(|component| matches!(component, Component::Expert(_)));
        of_experts.or_else(|| first(Component::is_quantizable)).unwrap_or(Precision::F32)
    }

    /// Returns the precision that a component runs in when the model runs in `precision`: in the exported variant, each
    /// component runs in its own exported precision, and so does a component that is never quantised in every variant.
    pub fn precision_of(&self, entry: &ComponentEntry, precision: Precision) -> Precision {
        if entry.component.is_quantizable() && precision != self.exported_precision() {
            precision
        } else {
            entry.exported_precision()
        }
    }

    /// Returns the precisions that the model can run in: those for which every component has the graphs of
    /// [`Self::precision_of`] for `target` and `kernels`, see [`ComponentEntry::graph`]. Components that are never
    /// quantised are ignored.
    pub fn precisions(&self, target: Target, kernels: KernelLibrary) -> Vec<Precision> {
        let fits = |graph: &GraphEntry, precision: Precision| {
            (graph.variant.target, graph.variant.precision) == (target, precision)
                && graph.variant.kernels <= kernels
        };
        let runs_in = |entry: &ComponentEntry, precision: Precision| {
            let own = self.precision_of(entry, precision);
            entry.graphs.iter().any(|graph| fits(graph, own))
        };
        Precision::ALL
            .into_iter()
            .filter(|precision| {
                let mut models = self.components.iter().filter(|entry| entry.component.is_quantizable());
                models.all(|entry| runs_in(entry, *precision))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{wan_denoiser, wan21_vae};
    use crate::digest::Digest;
    use crate::dtype::WeightType;
    use crate::manifest::{FORMAT, Part};
    use crate::routing::{ExpertName, Routing};
    use crate::settings::Defaults;
    use crate::spec::TextEncoderSpec;
    use crate::units::Timestep;
    use crate::variant::Variant;
    use KernelLibrary::{OnnxRuntime, Rushes};
    use Precision::{Bf16, F16, F32, Int8};
    use std::collections::BTreeMap;

    fn expert(name: &str) -> Component {
        Component::Expert(ExpertName(name.into()))
    }

    /// A component as it was exported for the CPU.
    fn exported(component: Component, weight_type: WeightType) -> ComponentEntry {
        let mut entry = ComponentEntry {
            component,
            graphs: Vec::new(),
            weights: Vec::new(),
            weight_type,
            digest: Digest::of_parts([]),
            variants: Vec::new(),
            loras: Vec::new(),
        };
        add(&mut entry, Precision::from(weight_type), OnnxRuntime);
        entry
    }

    fn add(entry: &mut ComponentEntry, precision: Precision, kernels: KernelLibrary) {
        let variant = Variant::cpu(precision, kernels);
        let file = variant.name();
        entry.graphs.push(GraphEntry { part: Part::Whole, variant, file, batch_invariant: None });
    }

    fn manifest(components: Vec<ComponentEntry>) -> Manifest {
        Manifest {
            format: FORMAT,
            rushes: String::new(),
            model: String::new(),
            text_encoder: TextEncoderSpec {
                vocabulary: 8,
                width: 8,
                heads: 1,
                head_width: 8,
                feed_forward: 8,
                layers: 1,
                buckets: 32,
                max_distance: 128,
                epsilon: 1e-6,
            },
            denoiser: wan_denoiser(1, 1, 1),
            vae: wan21_vae(),
            tiny_decoder: None,
            routing: Routing::pair(Timestep(875.0)).unwrap(),
            defaults: Defaults::resolve(&[], 2).unwrap(),
            components,
            digests: BTreeMap::new(),
        }
    }

    /// Text encoder, experts, decoder and tiny decoder in these formats.
    fn mixed(text: WeightType, experts: [WeightType; 2], decoder: WeightType) -> Manifest {
        manifest(vec![
            exported(Component::TextEncoder, text),
            exported(expert("high_noise"), experts[0]),
            exported(expert("low_noise"), experts[1]),
            exported(Component::Decoder, decoder),
            exported(Component::Preview, WeightType::F16),
        ])
    }

    fn precisions(manifest: &Manifest) -> Vec<Precision> {
        manifest.precisions(Target::Cpu, Rushes)
    }

    #[test]
    fn the_exported_precision_is_that_of_the_experts() {
        let (wide, half, brain) = (WeightType::F32, WeightType::F16, WeightType::Bf16);
        for (text, experts, decoder, expected) in [
            (wide, [wide, wide], wide, F32),
            (brain, [wide, wide], wide, F32),
            (wide, [brain, brain], half, Bf16),
            (wide, [half, half], brain, F16),
            (brain, [brain, wide], brain, F32),
            (wide, [brain, half], wide, F16),
        ] {
            let manifest = mixed(text, experts, decoder);
            assert_eq!(manifest.exported_precision(), expected);
            assert_eq!(precisions(&manifest), [expected]);
            assert_eq!(manifest.precisions(Target::Plain, Rushes), []);
            for entry in &manifest.components {
                assert_eq!(manifest.precision_of(entry, expected), Precision::from(entry.weight_type));
            }
        }
        let decoder = exported(Component::Decoder, brain);
        assert_eq!(manifest(vec![decoder]).exported_precision(), Bf16);
        assert_eq!(manifest(Vec::new()).exported_precision(), F32);
    }

    #[test]
    fn a_quantised_precision_needs_graphs_of_every_component_that_can_be_quantised() {
        let mut manifest = mixed(WeightType::Bf16, [WeightType::F32; 2], WeightType::F32);
        for index in 0..4 {
            assert_eq!(precisions(&manifest), [F32]);
            add(&mut manifest.components[index], Int8, OnnxRuntime);
        }
        assert_eq!(precisions(&manifest), [F32, Int8]);
        let of = |index: usize| manifest.precision_of(&manifest.components[index], Int8);
        assert_eq!([0, 1, 2, 3, 4].map(of), [Int8, Int8, Int8, Int8, F16]);
    }

    #[test]
    fn bf16_steps_on_rushes_kernels_are_in_the_exported_precision_of_bf16_experts() {
        let mut manifest = mixed(WeightType::F32, [WeightType::Bf16; 2], WeightType::F32);
        for index in [1, 2] {
            add(&mut manifest.components[index], Bf16, Rushes);
        }
        assert_eq!(precisions(&manifest), [Bf16]);
        assert_eq!(manifest.precision_of(&manifest.components[0], Bf16), F32);
        // f32 experts have no bf16 graphs for ONNX Runtime kernels.
        let mut manifest = mixed(WeightType::Bf16, [WeightType::F32; 2], WeightType::F32);
        for index in [1, 2] {
            add(&mut manifest.components[index], Bf16, Rushes);
        }
        add(&mut manifest.components[3], Bf16, OnnxRuntime);
        assert_eq!(precisions(&manifest), [F32, Bf16]);
        assert_eq!(manifest.precisions(Target::Cpu, OnnxRuntime), [F32]);
    }
}
