//! Plain HTTP beside gRPC: health, version, metrics; and the scrub, which `POST /scrub` begins and `GET /scrub` tells of.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use rpc::server::{HttpBody, http_body};

use super::Api;
use crate::metrics;
use crate::store::Store;

/// Whether the process is to be ended: not because a region or the placement driver has no leader.
const LIVES: &str = r#"{"health":"true","reason":""}"#;
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn answer(api: &Api, request: &Request<Bytes>) -> Response<HttpBody> {
    let path = request.uri().path();
    if path == "/scrub" && matches!(*request.method(), Method::GET | Method::POST) {
        return page(StatusCode::OK, "application/json", api.scrub.page(request.method() == Method::POST));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "pages are read with GET");
    }
    match path {
        "/livez" => page(StatusCode::OK, "application/json", LIVES.to_owned()),
        "/health" | "/readyz" => health(&api.store),
        "/version" => {
            let body = format!(r#"{{"flaredb":"{}"}}"#, env!("CARGO_PKG_VERSION"));
            page(StatusCode::OK, "application/json", body)
        }
        "/metrics" => page(StatusCode::OK, METRICS_TYPE, metrics::render(api)),
        path if path.starts_with("/pd/") => refused(
            StatusCode::NOT_FOUND,
            "this is a store: the placement driver has these pages, at pd_addr of flaredb.toml",
        ),
        _ => refused(
            StatusCode::NOT_FOUND,
            "there is no such page: /health, /livez, /readyz, /version, /metrics, /scrub",
        ),
    }
}

/// Of a store that does not serve yet.
pub fn closed(request: &Request<Bytes>, why: &str) -> Response<HttpBody> {
    let why = quotable(why);
    let body = match request.uri().path() {
        "/livez" => return page(StatusCode::OK, "application/json", LIVES.to_owned()),
        "/health" | "/readyz" => format!(r#"{{"health":"false","reason":"{why}"}}"#),
        _ => format!("{{\"error\":\"{why}\"}}\n"),
    };
    page(StatusCode::SERVICE_UNAVAILABLE, "application/json", body)
}

/// Healthy while every region here has a leader, here or elsewhere, and the cluster wants the store.
fn health(store: &Store) -> Response<HttpBody> {
    let regions = store.regions();
    let leaderless = regions.iter().filter(|region| region.handle.status().leader.is_none()).count();
    let (status, reason) = match (store.refused(), leaderless) {
        (Some(why), _) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the placement driver refuses this store, which may be stopped: {}", quotable(&why)),
        ),
        (None, 0) => (StatusCode::OK, String::new()),
        (None, some) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{some} of {} regions have no leader", regions.len()))
        }
    };
    let healthy = status == StatusCode::OK;
    page(status, "application/json", format!(r#"{{"health":"{healthy}","reason":"{reason}"}}"#))
}

/// Words that others chose, within a JSON string.
fn quotable(words: &str) -> String {
    words.replace(['"', '\\'], "'").replace(char::is_control, " ")
}

fn refused(status: StatusCode, why: &str) -> Response<HttpBody> {
    page(status, "application/json", format!("{{\"error\":\"{why}\"}}\n"))
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<HttpBody> {
    let mut response = Response::new(http_body(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
