//! Durable jobs: clips that are queued in a [`store`], survive their process, and are made by its [`owner`].
//!
//! In reading order: [`request`] (what a job was asked for), [`store`] (where jobs are kept; many processes read it and
//! add to it), [`owner`] (the one process that makes them); [`fork`] (a job that goes on from another one),
//! [`audition`] (jobs that differ in their seeds), [`tags`] (what the outputs of a job carry).

pub mod audition;
mod error;
pub mod fork;
pub mod owner;
pub mod request;
pub mod store;
pub mod tags;

pub use error::Error;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
