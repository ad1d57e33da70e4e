//! The routing table: the expert for each noise level.

use crate::units::Timestep;
use crate::{Error, Field};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of an expert and of its folder in the bundle: `high_noise`, `low_noise`, `only`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExpertName(pub String);

impl fmt::Display for ExpertName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One expert and its lowest timestep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// The expert.
    pub expert: ExpertName,
    /// The lowest timestep (0..=1000) of this expert. The range ends where that of the previous expert begins.
    pub from_timestep: f32,
}

/// The routing table: experts from the noisiest down. The range of the last one begins at 0.
///
/// ```
/// use bundle::routing::{ExpertIndex, Routing};
/// use bundle::units::Timestep;
///
/// let routing = Routing::pair(Timestep(875.0))?;
/// assert_eq!(routing.expert_at(Timestep(900.0)), ExpertIndex(0));
/// assert_eq!(routing.name(routing.expert_at(Timestep(500.0)))?.0, "low_noise");
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Route>", into = "Vec<Route>")]
pub struct Routing(Vec<Route>);

/// Position of an expert in the routing table, 0 = noisiest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExpertIndex(pub usize);

impl Routing {
    /// Creates a table of experts from the noisiest down.
    ///
    /// # Errors
    /// Returns an error if the table is empty, its boundaries are not strictly falling, or the last expert does not
    /// begin at 0.
    pub fn try_new(routes: Vec<Route>) -> Result<Self, Error> {
        let falling = routes.windows(2).all(|pair| pair[0].from_timestep > pair[1].from_timestep);
        let ends_at_zero = routes.last().is_some_and(|last| last.from_timestep == 0.0);
        if falling && ends_at_zero && routes.iter().all(|route| route.from_timestep <= 1000.0) {
            Ok(Self(routes))
        } else {
            Err(Error::value(
                Field::Routing,
                format!("{:?}", routes.iter().map(|route| route.from_timestep).collect::<Vec<_>>()),
                "boundaries must be strictly falling from at most 1000, and the last expert must begin at 0",
                "list the experts from the noisiest down, the last one from 0",
            ))
        }
    }

    /// Creates a table with one expert for all noise levels.
    pub fn single() -> Self {
        Self(vec![Route { expert: ExpertName("only".into()), from_timestep: 0.0 }])
    }

    /// Creates a table with a high-noise expert at or above `boundary` and a low-noise expert below it.
    ///
    /// # Errors
    /// Returns an error if the boundary is not above 0 and at most 1000.
    pub fn pair(boundary: Timestep) -> Result<Self, Error> {
        Self::try_new(vec![
            Route { expert: ExpertName("high_noise".into()), from_timestep: boundary.0 },
            Route { expert: ExpertName("low_noise".into()), from_timestep: 0.0 },
        ])
    }

    /// Returns the expert for a timestep, as the denoiser receives it.
    pub fn expert_at(&self, timestep: Timestep) -> ExpertIndex {
        let last = self.0.len() - 1;
        ExpertIndex(self.0.iter().position(|route| timestep.0 >= route.from_timestep).unwrap_or(last))
    }

    /// Returns all experts, from the noisiest down.
    pub fn routes(&self) -> &[Route] {
        &self.0
    }

    /// Returns the name of an expert.
    ///
    /// # Errors
    /// Returns an error if the table has no such position.
    pub fn name(&self, index: ExpertIndex) -> Result<&ExpertName, Error> {
        let route = self.0.get(index.0);
        route.map(|route| &route.expert).ok_or(Error::NoExpert { index, experts: self.0.len() })
    }
}

impl TryFrom<Vec<Route>> for Routing {
    type Error = Error;
    fn try_from(routes: Vec<Route>) -> Result<Self, Error> {
        Self::try_new(routes)
    }
}

impl From<Routing> for Vec<Route> {
    fn from(routing: Routing) -> Self {
        routing.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_boundary_itself_belongs_to_the_noisier_expert() {
        let routing = Routing::pair(Timestep(875.0)).unwrap();
        assert_eq!(routing.expert_at(Timestep(875.0)), ExpertIndex(0));
        assert_eq!(routing.expert_at(Timestep(874.0)), ExpertIndex(1));
    }

    #[test]
    fn a_table_with_a_gap_or_rising_boundaries_is_refused() {
        let route = |name: &str, from| Route { expert: ExpertName(name.into()), from_timestep: from };
        assert!(Routing::try_new(vec![]).is_err());
        assert!(Routing::try_new(vec![route("a", 500.0)]).is_err());
        assert!(Routing::try_new(vec![route("a", 500.0), route("b", 600.0), route("c", 0.0)]).is_err());
        assert!(Routing::try_new(vec![route("a", f32::NAN), route("b", 0.0)]).is_err());
    }

    #[test]
    fn a_position_outside_the_table_is_refused() {
        let routing = Routing::pair(Timestep(875.0)).unwrap();
        assert_eq!(routing.name(ExpertIndex(1)).unwrap().0, "low_noise");
        assert!(matches!(
            routing.name(ExpertIndex(2)).unwrap_err(),
            Error::NoExpert { index: ExpertIndex(2), experts: 2 }
        ));
    }

    proptest! {
        #[test]
        fn falling_timesteps_never_return_to_a_noisier_expert(
            mut boundaries in proptest::collection::btree_set(1_u16..1000, 0..4),
            mut steps in proptest::collection::vec(0.0_f32..1000.0, 1..60),
        ) {
            let mut routes: Vec<Route> = std::mem::take(&mut boundaries).into_iter().rev().enumerate()
                .map(|(i, from)| Route { expert: ExpertName(format!("e{i}")), from_timestep: f32::from(from) })
                .collect();
            routes.push(Route { expert: ExpertName("last".into()), from_timestep: 0.0 });
            let routing = Routing::try_new(routes).unwrap();
            steps.sort_by(|a, b| b.total_cmp(a));
            let experts: Vec<_> = steps.iter().map(|t| routing.expert_at(Timestep(*t))).collect();
            prop_assert!(experts.is_sorted());
            for (step, expert) in steps.iter().zip(&experts) {
                prop_assert!(*step >= routing.routes()[expert.0].from_timestep);
            }
        }
    }
}
