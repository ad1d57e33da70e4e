//! Clips: the one model of a job behind all APIs.
//!
//! A [`request`] is what an API was asked for, in common words; [`checked`] makes of it what the queue takes. [`queue`]
//! adds it to the store, with a [`ticket`] that says which client it belongs to. [`maker`] is the owner of the store,
//! and [`index`] knows every clip and its state, so that a question about one reads no file. [`result`] finds clips that
//! are asked for again.

pub(crate) mod checked;
pub(crate) mod deleting;
pub(crate) mod index;
pub(crate) mod maker;
pub(crate) mod queue;
pub(crate) mod request;
pub(crate) mod result;
pub(crate) mod submitting;
pub(crate) mod ticket;
