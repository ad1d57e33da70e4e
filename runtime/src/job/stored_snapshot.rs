//! Snapshots as bytes: a safetensors file whose metadata holds the settings as JSON, and a digest over everything.
//!
//! | tensor | shape | content |
//! |---|---|---|
//! | `latent` | `[C,T,h,w]` f32 | the latent |
//! | `clean` | `[C,T,h,w]` f32 | the clean latent that the last step predicted; absent before the first step |
//! | `predictions.0`, … | `[C,T,h,w]` f32 | the solver's history, newest first |
//! | `start` | `[C,T,h,w]` f32 | the latent at the start of the last step, after its correction |
//! | `cache.input` | `[C,T,h,w]` f32 | the latent at the start of the last computed step, if its velocities may be reused |
//! | `cache.conditional`, `cache.unconditional` | `[C,T,h,w]` f32 | its velocities; the second one if it was guided |
//!
//! The metadata has two keys: `snapshot` (JSON) and `digest` (BLAKE3 over the JSON and every tensor).

use super::conditions::RunConditions;
use super::record::LatentDigest;
use crate::Error;
use crate::denoise::{
    CachedPass, Denoising, RandomPosition, Snapshot, StepCache, StepPolicy, StoredDenoising,
};
use crate::sampler::{Schedule, SolverHistory};
use bundle::routing::Routing;
use bundle::settings::SolverKind;
use bundle::units::{GuidanceScale, Sigma};
use ndarray::Array4;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

/// The most bytes of a header that are read. That of 10,000 steps is shorter.
const MAX_HEADER: u64 = 16 << 20;

/// The version of the file that is written.
pub const SNAPSHOT_VERSION: u32 = 1;

/// What a snapshot belongs to. All must be equal for a run to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotIdentity {
    /// Digest of the bundle, see [`ModelIdentity`](super::ModelIdentity).
    pub bundle: String,
    /// Digest of the text states.
    pub text: String,
    /// Digest of the settings, see [`JobSpec::digest`](super::JobSpec::digest).
    pub settings: String,
}

/// A snapshot, with what it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSnapshot {
    /// The state.
    pub snapshot: Snapshot,
    /// What it belongs to.
    pub identity: SnapshotIdentity,
    /// The conditions of the run that made it.
    pub conditions: RunConditions,
    /// The other conditions under which steps were made, in order.
    pub earlier: Vec<RunConditions>,
    /// The digest of the latent after each step that is done.
    pub latents: Vec<LatentDigest>,
    /// How many forks of the spec are in the state. One that is due after the steps that are done may be or not.
    pub forks_applied: usize,
}

/// The JSON of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    steps_done: usize,
    schedule: Schedule,
    solver: SolverKind,
    history_since: usize,
    predictions: usize,
    routing: Routing,
    guidance: Vec<GuidanceScale>,
    #[serde(default = "lowest", skip_serializing_if = "is_lowest")]
    guidance_until: Sigma,
    policy: StepPolicy,
    random: RandomPosition,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache: Option<CacheHeader>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reused: Vec<usize>,
    identity: SnapshotIdentity,
    conditions: RunConditions,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<RunConditions>,
    latents: Vec<LatentDigest>,
    forks_applied: usize,
}

/// The rates of the velocities that are kept for later steps.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheHeader {
    conditional: Option<f64>,
    unconditional: Option<f64>,
}

fn lowest() -> Sigma {
    Sigma(0.0)
}

fn is_lowest(sigma: &Sigma) -> bool {
    *sigma == lowest()
}

impl StoredSnapshot {
    /// The number of steps that are done.
    pub fn steps_done(&self) -> usize {
        self.snapshot.state().steps_done()
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let state = self.snapshot.state().stored();
        let header = Header {
            version: SNAPSHOT_VERSION,
            steps_done: state.steps_done,
            schedule: state.schedule,
            solver: state.solver,
            history_since: state.history.since,
            predictions: state.history.predictions.len(),
            routing: state.routing,
            guidance: state.guidance,
            guidance_until: state.guidance_until,
            policy: state.policy,
            random: state.random,
            cache: state.cache.as_ref().map(|cache| CacheHeader {
                conditional: cache.conditional.rate,
                unconditional: cache.unconditional.as_ref().and_then(|pass| pass.rate),
            }),
            reused: state.reused,
            identity: self.identity.clone(),
            conditions: self.conditions.clone(),
            earlier: self.earlier.clone(),
            latents: self.latents.clone(),
            forks_applied: self.forks_applied,
        };
        let json = serde_json::to_string(&header).unwrap_or_else(|_| unreachable!("keys are strings"));
        let mut tensors: Vec<(String, &Array4<f32>)> = vec![("latent".into(), &state.latent)];
        tensors.extend(state.clean.as_deref().map(|clean| ("clean".into(), clean)));
        tensors.extend(state.history.start.as_deref().map(|start| ("start".into(), start)));
        if let Some(StepCache { input, conditional, unconditional }) = &state.cache {
            // In the order of their names, as they are hashed.
            tensors.push((CACHE[1].into(), &conditional.velocity));
            tensors.push((CACHE[0].into(), input));
            tensors.extend(unconditional.as_ref().map(|pass| (CACHE[2].into(), &*pass.velocity)));
        }
        for (index, prediction) in state.history.predictions.iter().enumerate() {
            tensors.push((format!("predictions.{index}"), prediction));
        }
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|(name, values)| {
                let mut bytes = vec![0; 4 * values.len()];
                // Latents are large, and contiguous as they come from the solver.
                let standard = values.as_standard_layout();
                let own = standard.as_slice().unwrap_or_else(|| unreachable!("it is in standard layout"));
                for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(own) {
                    *bytes = value.to_le_bytes();
                }
                (name, values.shape().to_vec(), bytes)
            })
            .collect();
        let digest = digest(&json, tensors.iter().map(|(name, shape, bytes)| (&**name, &**shape, &**bytes)));
        let metadata = HashMap::from([("snapshot".to_owned(), json), ("digest".to_owned(), digest)]);
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
                .unwrap_or_else(|_| unreachable!("four bytes for each value"));
            (name, view)
        });
        safetensors::serialize(views, Some(metadata))
            .unwrap_or_else(|_| unreachable!("tensors in memory are serialised"))
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// The bytes are damaged, are not a snapshot, or are one of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |why: String| Error::Snapshot { why };
        let (_, head) = SafeTensors::read_metadata(bytes).map_err(|error| wrong(error.to_string()))?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| wrong(error.to_string()))?;
        let metadata = head.metadata().as_ref();
        let text = |key: &str| {
            let found = metadata.and_then(|metadata| metadata.get(key));
            found.ok_or_else(|| wrong(format!("it has no metadata `{key}`")))
        };
        let (json, expected) = (text("snapshot")?, text("digest")?);
        let mut names = file.names();
        names.sort_by_key(|name| order(name));
        let mut tensors = HashMap::new();
        let mut hashed = Vec::new();
        for name in names {
            let view = file.tensor(name).map_err(|error| wrong(error.to_string()))?;
            hashed.push((name, view.shape().to_vec(), view.data()));
            tensors.insert(name.to_owned(), array(name, &view).map_err(wrong)?);
        }
        let found = digest(json, hashed.iter().map(|(name, shape, data)| (*name, &**shape, *data)));
        if found != *expected {
            return Err(wrong("its content does not have the digest that it names".into()));
        }
        // A snapshot of another version may have other fields.
        let Version { version } = serde_json::from_str(json).map_err(|error| wrong(error.to_string()))?;
        if version != SNAPSHOT_VERSION {
            return Err(wrong(format!(
                "its version is {version}, and this program reads {SNAPSHOT_VERSION}"
            )));
        }
        let header: Header = serde_json::from_str(json).map_err(|error| wrong(error.to_string()))?;
        let mut take = |name: &str| tensors.remove(name).map(Arc::new);
        let latent = take("latent").ok_or_else(|| wrong("it has no tensor `latent`".into()))?;
        let (clean, start) = (take("clean"), take("start"));
        let predictions =
            (0..header.predictions).map_while(|index| take(&format!("predictions.{index}"))).collect();
        let cache = match header.cache {
            None => None,
            Some(rates) => {
                let input =
                    take(CACHE[0]).ok_or_else(|| wrong(format!("it has no tensor `{}`", CACHE[0])))?;
                let velocity =
                    take(CACHE[1]).ok_or_else(|| wrong(format!("it has no tensor `{}`", CACHE[1])))?;
                let conditional = CachedPass { velocity, rate: rates.conditional };
                let pass = |velocity| CachedPass { velocity, rate: rates.unconditional };
                Some(StepCache { input, conditional, unconditional: take(CACHE[2]).map(pass) })
            }
        };
        if let Some(name) = tensors.keys().next() {
            return Err(wrong(format!("the tensor `{name}` does not belong to a snapshot")));
        }
        let stored = StoredDenoising {
            routing: header.routing,
            guidance: header.guidance,
            guidance_until: header.guidance_until,
            policy: header.policy,
            schedule: header.schedule,
            solver: header.solver,
            steps_done: header.steps_done,
            history: SolverHistory { since: header.history_since, predictions, start },
            latent,
            clean,
            random: header.random,
            cache,
            reused: header.reused,
        };
        let state = Denoising::from_stored(stored).map_err(|why| wrong(why.to_owned()))?;
        if header.latents.len() != header.steps_done {
            return Err(wrong("it has not one digest for each step".into()));
        }
        let snapshot = state.snapshot();
        let Header { identity, conditions, earlier, latents, forks_applied, .. } = header;
        Ok(Self { snapshot, identity, conditions, earlier, latents, forks_applied })
    }
}

/// The tensors of the velocities that are kept for later steps.
const CACHE: [&str; 3] = ["cache.input", "cache.conditional", "cache.unconditional"];

/// The number of steps that are done in the snapshot in a file, by its header alone. `None` if it has none.
pub(super) fn steps_of(file: &mut impl Read) -> Option<usize> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(rename = "__metadata__")]
        metadata: HashMap<String, String>,
    }
    #[derive(Deserialize)]
    struct Steps {
        steps_done: usize,
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    let mut json = Vec::new();
    file.take(length.min(MAX_HEADER)).read_to_end(&mut json).ok()?;
    let Head { metadata } = serde_json::from_slice(&json).ok()?;
    let Steps { steps_done } = serde_json::from_str(metadata.get("snapshot")?).ok()?;
    Some(steps_done)
}

/// The order in which tensors are hashed.
fn order(name: &str) -> (usize, String) {
    let rank = ["latent", "clean", "start"].iter().position(|known| *known == name).unwrap_or(3);
    (rank, name.to_owned())
}

/// A digest over the JSON, and name, shape and bytes of each tensor.
fn digest<'a>(json: &str, tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [u8])>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(json.as_bytes());
    for (name, shape, bytes) in tensors {
        part(name.as_bytes());
        shape.iter().for_each(|extent| part(&(*extent as u64).to_le_bytes()));
        part(bytes);
    }
    hasher.finalize().to_hex().to_string()
}

/// A tensor `[C,T,h,w]` f32.
fn array(name: &str, view: &TensorView<'_>) -> Result<Array4<f32>, String> {
    let [c, t, h, w] = view.shape() else {
        return Err(format!("`{name}` has the shape {:?}, and a latent has four axes", view.shape()));
    };
    if view.dtype() != Dtype::F32 {
        return Err(format!("`{name}` is {:?} and should be F32", view.dtype()));
    }
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Array4::from_shape_vec((*c, *t, *h, *w), values).map_err(|error| error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::conditions::tests::conditions;
    use super::*;
    use crate::denoise::ForkChanges;
    use crate::denoise::synthetic::{denoising, run, step};
    use bundle::settings::ScheduleKind;
    use proptest::prelude::*;

    pub(crate) fn stored(solver: SolverKind, steps: usize, stop: usize) -> StoredSnapshot {
        let mut state = denoising(solver, ScheduleKind::Official, steps, 1, 700, 3);
        let mut latents = Vec::new();
        for _ in 0..stop {
            step(&mut state);
            latents.push(LatentDigest::of(state.latent()));
        }
        let digest = |letter: &str| letter.repeat(64);
        let identity = SnapshotIdentity { bundle: digest("a"), text: digest("b"), settings: digest("c") };
        let (snapshot, conditions) = (state.snapshot(), conditions());
        StoredSnapshot {
            snapshot,
            identity,
            earlier: vec![conditions.clone()],
            conditions,
            latents,
            forks_applied: 0,
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_survives_as_bytes_at_every_step(
            solver in 0..SolverKind::ALL.len(), kind in 0_usize..2, steps in 1_usize..9, stop in 0_usize..9,
            guidance in 0_usize..3, boundary in 1_u16..1000,
        ) {
            let (solver, kind) = (SolverKind::ALL[solver], ScheduleKind::ALL[kind]);
            let mut state = denoising(solver, kind, steps, guidance, boundary, 5);
            let whole = run(state.clone());
            let mut latents = Vec::new();
            for _ in 0..stop.min(steps) {
                step(&mut state);
                latents.push(LatentDigest::of(state.latent()));
            }
            let stored = StoredSnapshot { snapshot: state.snapshot(), latents, ..stored(solver, 1, 0) };
            let read = StoredSnapshot::from_bytes(&stored.to_bytes()).unwrap();
            prop_assert_eq!(&read, &stored);
            prop_assert_eq!(run(Denoising::resume(read.snapshot)), whole);
        }

        #[test]
        fn a_damaged_snapshot_is_detected(stop in 0_usize..4, at in 0_usize..100_000, bit in 0_u8..8, cut in any::<bool>()) {
            let mut bytes = stored(SolverKind::UniPc, 5, stop).to_bytes();
            let at = at % bytes.len();
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << bit;
            }
            prop_assert!(StoredSnapshot::from_bytes(&bytes).is_err());
        }
    }

    #[test]
    fn the_velocities_that_are_kept_survive_as_bytes() {
        let changes = ForkChanges {
            policy: Some(StepPolicy::EasyCache { threshold: 0.5 }),
            guidance_until: Some(Sigma(0.4)),
            ..ForkChanges::default()
        };
        let state = denoising(SolverKind::UniPc, ScheduleKind::Official, 20, 1, 700, 5);
        let mut state = Denoising::fork(state.snapshot(), changes).unwrap();
        let mut latents = Vec::new();
        let mut reused = 0;
        for _ in 0..20 {
            step(&mut state);
            latents.push(LatentDigest::of(state.latent()));
            let snapshot = StoredSnapshot {
                snapshot: state.snapshot(),
                latents: latents.clone(),
                ..stored(SolverKind::UniPc, 1, 0)
            };
            let read = StoredSnapshot::from_bytes(&snapshot.to_bytes()).unwrap();
            assert_eq!(read, snapshot);
            assert_eq!(run(Denoising::resume(read.snapshot)), run(state.clone()));
            reused = state.reused_steps().len();
        }
        assert!(reused > 3, "{reused}");
    }

    /// Changes the JSON of a snapshot and gives it the right digest.
    fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Result<StoredSnapshot, Error> {
        let bytes = stored(SolverKind::UniPc, 5, 3).to_bytes();
        let (_, head) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut json: serde_json::Value =
            serde_json::from_str(&head.metadata().as_ref().unwrap()["snapshot"]).unwrap();
        edit(&mut json);
        let json = json.to_string();
        let mut names = file.names();
        names.sort_by_key(|name| order(name));
        let views: Vec<_> = names.iter().map(|name| (*name, file.tensor(name).unwrap())).collect();
        let digest = digest(&json, views.iter().map(|(name, view)| (*name, view.shape(), view.data())));
        let metadata = HashMap::from([("snapshot".to_owned(), json), ("digest".to_owned(), digest)]);
        StoredSnapshot::from_bytes(&safetensors::serialize(views, Some(metadata)).unwrap())
    }

    #[test]
    fn a_snapshot_that_contradicts_itself_is_refused() {
        edited(|_| {}).unwrap();
        let refused = |edit: fn(&mut serde_json::Value)| edited(edit).unwrap_err().to_string();
        assert!(refused(|json| json["version"] = 2.into()).contains("version is 2"));
        assert!(refused(|json| json["steps_done"] = 2.into()).contains("history"));
        assert!(refused(|json| json["steps_done"] = 9.into()).contains("more steps"));
        assert!(refused(|json| json["predictions"] = 2.into()).contains("predictions.2"));
        assert!(refused(|json| json["guidance"] = serde_json::json!([1.0])).contains("guidance"));
        assert!(refused(|json| json["schedule"]["sigmas"][1] = 1.5.into()).contains("sigma"));
        assert!(refused(|json| json["latents"] = serde_json::json!([])).contains("digest"));
        assert!(refused(|json| json["guidance"][0] = 1e39.into()).contains("out of range"));
        assert!(refused(|json| json["unknown"] = 1.into()).contains("unknown"));
        let newer = |json: &mut serde_json::Value| (json["version"], json["unknown"]) = (2.into(), 1.into());
        assert!(edited(newer).unwrap_err().to_string().contains("version is 2"));
    }
}
