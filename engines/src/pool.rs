//! The memory pool of a session, as its outputs see it.

use std::sync::Arc;

/// Keeps the memory pool of a session charged while any of its outputs is alive.
pub(crate) type PoolToken = Arc<()>;
