//! The routes of Rushes itself: signing in, media by link, progress, previews, clips while
//! they are made.

mod events;
mod live;
mod media;
mod preview;
mod session;
mod socket;

use crate::app::App;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;

/// The routes.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    session::router()
        .merge(media::router())
        .merge(events::router())
        .merge(preview::router())
        .merge(live::router())
        .merge(socket::router())
}
