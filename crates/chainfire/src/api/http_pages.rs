//! Plain HTTP beside gRPC: health, version, metrics.
//!
//! `/health` answers like etcd's: unhealthy without a leader, with an alarm that was not excluded, or when a linearizable
//! read does not come back (left out with `serializable=true`). `/livez` asks whether the process should be killed,
//! `/readyz` whether it should be given requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use proto::etcdserverpb::AlarmType;
use rpc::server::{HttpBody, http_body};

use super::{Api, ETCD_VERSION};

const READ_TIMEOUT: Duration = Duration::from_secs(2);

impl Api {
    pub(super) async fn page(self: Arc<Self>, request: Request<Bytes>) -> Response<HttpBody> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n".to_owned());
        }
        let query = request.uri().query().unwrap_or_default();
        match request.uri().path() {
            "/health" => self.health(query).await,
            "/livez" => self.probe(query, false).await,
            "/readyz" => self.probe(query, true).await,
            "/version" => json(
                StatusCode::OK,
                format!(
                    r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_VERSION}","storage":"{ETCD_VERSION}"}}"#
                ),
            ),
            "/metrics" => page(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", (self.sources)()),
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
        }
    }

    async fn health(&self, query: &str) -> Response<HttpBody> {
        let excluded: Vec<&str> = values(query, "exclude").collect();
        let alarm = self.alarms().into_iter().find_map(|(kind, _)| {
            let name = AlarmType::try_from(kind).map_or("UNKNOWN", |kind| kind.as_str_name());
            (!excluded.contains(&name)).then(|| format!("ALARM {name}"))
        });
        let serializable = values(query, "serializable").any(|value| value == "true");
        let reason = match alarm {
            Some(alarm) => alarm,
            None if serializable => String::new(),
            None => self.leader_and_read().await.err().unwrap_or_default(),
        };
        let healthy = reason.is_empty();
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json(status, format!(r#"{{"health":"{healthy}","reason":"{reason}"}}"#))
    }

    async fn probe(&self, query: &str, ready: bool) -> Response<HttpBody> {
        let excluded: Vec<&str> = values(query, "exclude").collect();
        let mut lines = vec![("serializable_read", self.current().map(|_| ()).map_err(|error| error.to_string()))];
        if ready {
            let corrupt = self.alarms().iter().any(|(kind, _)| *kind == AlarmType::Corrupt as i32);
            let corrupt = if corrupt { Err("alarm activated: CORRUPT".to_owned()) } else { Ok(()) };
            lines.push(("data_corruption", corrupt));
            lines.push(("linearizable_read", self.leader_and_read().await));
        }
        lines.retain(|(name, _)| !excluded.contains(name));
        let failed = lines.iter().any(|(_, result)| result.is_err());
        let status = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let verbose = query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
        if !failed && !verbose {
            return text(status, "ok\n".to_owned());
        }
        let mut body = String::new();
        for (name, result) in lines {
            body += &match result {
                Ok(()) => format!("[+]{name} ok\n"),
                Err(why) => format!("[-]{name} failed: {why}\n"),
            };
        }
        body += if failed { "check failed\n" } else { "ok\n" };
        text(status, body)
    }

    async fn leader_and_read(&self) -> Result<(), String> {
        if self.handle.is_left_out() {
            return Err("MEMBER REMOVED".to_owned());
        }
        if self.handle.status().leader.is_none() {
            return Err("RAFT NO LEADER".to_owned());
        }
        match tokio::time::timeout(READ_TIMEOUT, self.linearize()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.message.into_owned()),
            Err(_) => Err("RANGE ERROR:context deadline exceeded".to_owned()),
        }
    }
}

fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter_map(move |part| part.split_once('='))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn json(status: StatusCode, body: String) -> Response<HttpBody> {
    page(status, "application/json", body)
}

fn text(status: StatusCode, body: String) -> Response<HttpBody> {
    page(status, "text/plain; charset=utf-8", body)
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<HttpBody> {
    let mut response = Response::new(http_body(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
