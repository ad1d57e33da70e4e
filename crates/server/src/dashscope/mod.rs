//! Tasks of DashScope (Alibaba Model Studio), of which the video synthesis of Wan models is served.
//!
//! [`create`] reads a request, [`types`] is what is answered.

mod create;
mod list;
mod routes;
mod types;

pub(crate) use routes::router;
