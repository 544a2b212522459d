//! The API's description, made from the routes and the types; `docs/openapi.json` is a copy of it.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;

use super::{events, images, kernels, operations, snapshots, system, templates, vms};

#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "banger",
        description = "The daemon's API, HTTP/1.1 and JSON on a unix socket. Errors are \
            `application/problem+json` bodies with a stable `code`. Long work answers 202 with an \
            operation, whose events tell the rest.",
        license(name = "Apache-2.0")
    ),
    paths(
        system::version,
        system::stop_daemon,
        vms::list,
        vms::create,
        vms::show,
        vms::change,
        vms::remove,
        vms::start,
        vms::stop,
        vms::restart,
        vms::kill,
        vms::pause,
        vms::resume,
        vms::fork,
        vms::wait,
        vms::read_logs,
        vms::prune,
        images::list,
        images::catalog,
        images::pull,
        images::upload,
        images::register,
        images::promote,
        images::push,
        images::prune,
        images::show,
        images::remove,
        kernels::list,
        kernels::catalog,
        kernels::pull,
        kernels::import,
        kernels::show,
        kernels::remove,
        templates::list,
        templates::make,
        templates::show,
        templates::remove,
        templates::prune,
        snapshots::list,
        snapshots::create,
        snapshots::show,
        snapshots::remove,
        snapshots::restore,
        operations::list,
        operations::show,
        operations::cancel,
        operations::events,
        events::events,
        system::disk_use,
        system::vm_ids,
        system::reset,
    )
)]
struct Description;

/// The description, as it is committed.
#[must_use]
pub fn document() -> String {
    let mut text = Description::openapi().to_pretty_json().expect("a description is plain data");
    text.push('\n');
    text
}

pub(super) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_description_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == document(),
            "docs/openapi.json is stale: cargo run -p bangerd -- --print-openapi > docs/openapi.json"
        );
    }
}
