//! Auditions: the first steps of several seeds, of which a client keeps what it likes.
//!
//! A take is a clip as any other, which no API shows as a video until it is kept. A [`request`] leads to the jobs of all
//! takes, which [`submitting`] adds together; [`index`] knows which clips belong together. [`ending`] keeps, cancels and
//! deletes takes, [`pictures`] draws them, and [`types`] is what a client sees.

pub(crate) mod ending;
pub(crate) mod index;
pub(crate) mod pictures;
mod request;
mod routes;
mod submitting;
mod types;

pub(crate) use request::TAKES;
pub(crate) use routes::router;
