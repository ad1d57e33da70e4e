//! The videos API of OpenAI, which OpenAI retired on 24 September 2026 and self-hosted servers kept.
//!
//! [`types`] is what is sent and answered, [`create`] reads a request for a clip.

mod create;
mod routes;
pub(crate) mod types;

pub(crate) use create::{read_clip, read_format, read_settings};
pub(crate) use routes::{router, shown};
pub(crate) use types::error_of;
