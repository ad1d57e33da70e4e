//! The bundles that are served, by the names that clients use.

use crate::clips::index::Clip;
use crate::config::{Alias, Config};
use crate::fault::Fault;
use axum::http::StatusCode;
use bundle::manifest::{Bundle, Manifest};
use std::path::PathBuf;
use std::sync::Arc;

/// A bundle that is served.
#[derive(Debug)]
pub(crate) struct ServedModel {
    /// The name that clients use.
    pub name: String,
    /// The folder, as an absolute path.
    pub folder: PathBuf,
    /// Its content.
    pub manifest: Manifest,
}

/// The bundles that are served.
#[derive(Debug)]
pub(crate) struct Models {
    models: Vec<Arc<ServedModel>>,
    aliases: Vec<Alias>,
}

impl Models {
    /// Opens the bundles of a configuration.
    ///
    /// # Errors
    /// A bundle cannot be opened.
    pub(crate) fn open(config: &Config) -> Result<Self, bundle::Error> {
        let open = |(name, folder): &(String, PathBuf)| {
            let manifest = Bundle::open(folder)?.manifest;
            Ok(Arc::new(ServedModel { name: name.clone(), folder: folder.clone(), manifest }))
        };
        let models = config.bundles.iter().map(open).collect::<Result<_, bundle::Error>>()?;
        Ok(Self { models, aliases: config.aliases.clone() })
    }

    /// All, the default first.
    pub(crate) fn all(&self) -> &[Arc<ServedModel>] {
        &self.models
    }

    /// The model that a clip was made with, if it is still served.
    pub(crate) fn of_clip(&self, clip: &Clip) -> Option<&Arc<ServedModel>> {
        let base = clip.ticket.base.as_ref().unwrap_or(&clip.request.bundle);
        self.models.iter().find(|model| model.folder == *base)
    }

    /// The model that a client names, by its name or an alias; the first one if it names none.
    ///
    /// # Errors
    /// There is no such model. The fault lists those that there are.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<&Arc<ServedModel>, Fault> {
        let by_name = |name: &str| self.models.iter().find(|model| model.name == name);
        let found = match name {
            None => self.models.first(),
            Some(name) => by_name(name).or_else(|| {
                let alias = self.aliases.iter().find(|alias| alias.matches(name))?;
                by_name(&alias.bundle)
            }),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = self.models.iter().map(|model| &*model.name).collect();
            let message = format!(
                "there is no model `{}`; this server has {}",
                name.unwrap_or_default(),
                names.join(", ")
            );
            Fault::new(StatusCode::BAD_REQUEST, "model_not_found", message).about("model")
        })
    }
}
