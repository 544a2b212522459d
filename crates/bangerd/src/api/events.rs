//! The route of events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::sse::{Event as Line, KeepAlive, Sse};
use axum::routing::get;
use banger_api::event::{Event, EventQuery};
use banger_api::{ErrorCode, Problem};
use banger_core::event_filter::EventFilter;
use futures_util::stream::{self, Stream};

use super::answer::{Failure, Params};
use crate::daemon::Daemon;

/// How often a silent stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new().route("/v1/events", get(events))
}

/// What happens, as server-sent events.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(("since_ms" = Option<u64>, Query, description =
            "First those remembered from this moment on, in milliseconds since the Unix epoch"),
        ("filter" = Option<String>, Query, description =
            "Conditions separated by commas: `vm=web`, `type=vm.stopped`, `type=vm`. Those of one \
             key are alternatives; all keys must hold"),
        ("follow" = Option<bool>, Query, description =
            "Go on with what comes (the default)")),
    responses((status = 200, body = Event, content_type = "text/event-stream"),
        (status = "default", body = Problem)))]
pub(super) async fn events(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<EventQuery>,
) -> Result<Sse<impl Stream<Item = Result<Line, Infallible>>>, Failure> {
    let filter =
        EventFilter::parse(query.filter.as_deref().unwrap_or_default()).map_err(|error| {
            Problem::new(ErrorCode::InvalidArgument, error.to_string())
                .hint("banger events --filter type=vm.stopped")
        })?;
    let subscription = daemon.events.subscribe(query.since_ms, query.follow);
    let lines = stream::unfold((subscription, filter), |(mut events, filter)| async move {
        loop {
            let event = events.next().await?;
            if filter.matches(&event) {
                let json = serde_json::to_string(&event).expect("an event has only string keys");
                return Some((Ok(Line::default().data(json)), (events, filter)));
            }
        }
    });
    Ok(Sse::new(lines).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}
