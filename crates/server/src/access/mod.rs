//! Who may do what.
//!
//! [`tokens`] are kept as digests in a file. [`session`] turns a token into a cookie for browsers. [`origin`] has the
//! rules for hosts and origins. [`guard`] applies them to every request and says who the [`Caller`] is.

mod caller;
pub(crate) mod guard;
pub(crate) mod origin;
pub(crate) mod session;
pub mod tokens;

pub(crate) use caller::Caller;
