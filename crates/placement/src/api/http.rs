//! Plain HTTP: what people and their tools ask under `/pd/api/v1`; of this member alone: health, version, metrics, and the scrub,
//! which `POST /scrub` begins and `GET /scrub` tells of.
//!
//! Every answer is JSON, errors too: `{"error": "why"}`. Bodies are read as JSON whatever their header says, because
//! `curl -d` sends another one.

use std::sync::Arc;

use ::http::{Method, Response, StatusCode, header};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use rpc::Status;
use rpc::server::{HttpBody, http_body};
use serde_json::{Value, json};

use super::{Api, HTTP, pages};

const PREFIX: &str = "/pd/api/v1";
const JSON: &str = "application/json";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A request as it is passed on.
pub struct Request {
    pub method: Method,
    /// Behind the prefix.
    pub path: String,
    pub query: String,
    pub body: Bytes,
}

impl Request {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        for text in [self.method.as_str(), &self.path, &self.query] {
            out.put_u16_le(text.len() as u16);
            out.put_slice(text.as_bytes());
        }
        out.put_slice(&self.body);
        out.freeze()
    }

    /// `None` when the bytes make no sense.
    pub fn decode(mut bytes: Bytes) -> Option<Request> {
        let mut text = || {
            let length = bytes.try_get_u16_le().ok()? as usize;
            (bytes.len() >= length).then(|| String::from_utf8(bytes.split_to(length).to_vec()).ok())?
        };
        let (method, path, query) = (text()?, text()?, text()?);
        Some(Request { method: Method::from_bytes(method.as_bytes()).ok()?, path, query, body: bytes })
    }
}

impl Api {
    pub(super) async fn page(self: Arc<Self>, request: ::http::Request<Bytes>) -> Response<HttpBody> {
        let path = request.uri().path();
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path {
            // Whether the process is to be ended: not for want of the others.
            "/livez" if is_get => return response(StatusCode::OK, JSON, json!({ "health": "true" }).to_string()),
            "/version" if is_get => {
                let version = json!({ "placement-driver": env!("CARGO_PKG_VERSION") });
                return response(StatusCode::OK, JSON, version.to_string());
            }
            "/health" | "/readyz" if is_get => {
                let healthy = !self.handle.status().leader.is_none() && !self.handle.is_left_out();
                let code = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let mut health = json!({ "health": healthy.to_string() });
                if !healthy {
                    let removed = self.handle.is_left_out();
                    let why = if removed { consensus::Refusal::Removed } else { consensus::Refusal::NoLeader };
                    health["reason"] = why.to_string().into();
                }
                return response(code, JSON, health.to_string());
            }
            "/scrub" if is_get || request.method() == Method::POST => {
                return response(StatusCode::OK, JSON, self.scrub.page(request.method() == Method::POST));
            }
            "/metrics" if is_get => return response(StatusCode::OK, METRICS, self.metrics()),
            _ => {}
        }
        // Both are bounded by the server's bound on headers; a length of two bytes holds them.
        let below =
            path.strip_prefix(PREFIX).and_then(|path| if path.is_empty() { Some("") } else { path.strip_prefix('/') });
        let Some(path) = below.filter(|path| path.len() < 1 << 15) else {
            return response(StatusCode::NOT_FOUND, JSON, error_text("there is no such page; see /pd/api/v1/"));
        };
        let query = request.uri().query().unwrap_or_default().to_owned();
        let asked = Request {
            method: request.method().clone(),
            path: path.trim_end_matches('/').to_owned(),
            query,
            body: request.into_body(),
        };
        let unled = self.handle.status().leader.is_none();
        let (code, body) = if unled && let Some(page) = pages::without_a_leader(&self, &asked) {
            (200, format!("{page:#}\n"))
        } else if self.handle.is_leader() {
            self.http_here(asked).await
        } else {
            let changes = asked.method != Method::GET;
            match self.forward(HTTP, asked.encode(), changes).await {
                Ok((code, body)) => (code as u16, String::from_utf8_lossy(&body).into_owned()),
                Err(status) => (status.code.http_status(), error_text(&status.message)),
            }
        };
        response(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), JSON, body)
    }

    /// Answers as the leader: an HTTP code and JSON.
    pub(super) async fn http_here(&self, request: Request) -> (u16, String) {
        let settled = match self.leader() {
            Ok(leader) => leader.settle().await,
            Err(status) => Err(status),
        };
        if let Err(status) = settled {
            return (status.code.http_status(), error_text(&status.message));
        }
        match pages::answer(self, &request).await {
            Ok(value) => (200, format!("{value:#}\n")),
            Err(PageError::Status(status)) => (status.code.http_status(), error_text(&status.message)),
            Err(PageError::Http(code, why)) => (code.as_u16(), error_text(&why)),
        }
    }
}

/// Why a page is not to be had.
pub enum PageError {
    Status(Status),
    Http(StatusCode, String),
}

impl From<Status> for PageError {
    fn from(status: Status) -> PageError {
        PageError::Status(status)
    }
}

pub fn not_found(why: impl Into<String>) -> PageError {
    PageError::Http(StatusCode::NOT_FOUND, why.into())
}

pub fn bad_request(why: impl Into<String>) -> PageError {
    PageError::Http(StatusCode::BAD_REQUEST, why.into())
}

/// The body as JSON.
pub fn body_of(request: &Request) -> Result<Value, PageError> {
    serde_json::from_slice(&request.body).map_err(|error| bad_request(format!("the body is no JSON: {error}")))
}

fn error_text(why: &str) -> String {
    format!("{}\n", json!({ "error": why }))
}

fn response(code: StatusCode, kind: &'static str, body: String) -> Response<HttpBody> {
    let mut response = Response::new(http_body(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
