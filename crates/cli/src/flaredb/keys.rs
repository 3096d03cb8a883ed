//! Raw keys.

use std::error::Error as _;
use std::sync::Arc;

use bytes::Bytes;
use cli::failure::{Failure, Kind};
use cli::format;
use cli::output::{Format, Output};
use proto::flaredb as pb;
use rpc::client::{PlacementDriver, RawClient, Router};
use serde_json::json;
use tonic::Response;
use tonic::transport::Channel;

use crate::args::Global;
use crate::connect::{connect, reach_all};
use crate::pd::{no_leader, unknown_there};

/// Who is asked for keys.
enum Way {
    /// The endpoint: a store or a placement driver, both know the way.
    Endpoint(String, RawClient<Channel>),
    /// The stores that lead the keys, as the placement driver at these addresses says.
    Leaders(String, Router),
}

impl Way {
    async fn of(global: &Global) -> Result<Way, Failure> {
        if global.pd.is_empty() {
            let client = RawClient::new(connect(global, &global.endpoint).await?);
            let client = client.max_decoding_message_size(rpc::client::RESPONSE_BYTES_MAX);
            return Ok(Way::Endpoint(global.endpoint.clone(), client));
        }
        let (urls, tls) = reach_all(global, &global.pd)?;
        let members = PlacementDriver::new(urls, tls.clone());
        Ok(Way::Leaders(global.pd.join(","), Router::new(Arc::new(members), tls)))
    }
}

/// A call by either way.
macro_rules! ask {
    ($way:expr, $call:ident, $request:expr) => {
        match &$way {
            Way::Endpoint(endpoint, client) => {
                let answer = client.clone().$call($request).await;
                answer.map(Response::into_inner).map_err(|status| of_endpoint(endpoint, &status))
            }
            Way::Leaders(members, router) => router.$call($request).await.map_err(|status| of_router(members, status)),
        }
    };
}

/// What a server says itself names the store or the region that it speaks of.
fn of_endpoint(endpoint: &str, status: &tonic::Status) -> Failure {
    let said = status.source().is_none() && !status.message().starts_with("context deadline exceeded");
    match status.code() {
        tonic::Code::DeadlineExceeded if said => Failure::timed_out_saying(endpoint, status.message()),
        _ => unled(endpoint, status.message()).unwrap_or_else(|| Failure::of_status(endpoint, status)),
    }
}

/// Nobody leads the placement driver, or the region.
fn unled(at: &str, words: &str) -> Option<Failure> {
    if ["the placement driver does not say", "waits for the placement driver"].iter().any(|said| words.contains(said)) {
        return no_leader(at, words);
    }
    let failure = || Failure::new(Kind::NoLeader, format!("{at}: {words}"));
    let advice = "a majority of the region's stores has to answer: see `cluster-status` and `explain region`";
    words.contains("no leader elected").then(|| failure().advise(advice))
}

fn of_router(members: &str, status: rpc::Status) -> Failure {
    if status.code == rpc::Code::DeadlineExceeded {
        return Failure::timed_out_saying(members, &status.message);
    }
    if status.message.contains("unknown method") {
        return unknown_there(members);
    }
    if let Some(failure) = unled(members, &status.message) {
        return failure;
    }
    let code = tonic::Code::from_i32(status.code.number() as i32);
    Failure::of_status(members, &tonic::Status::new(code, status.message))
}

pub async fn get(global: &Global, key: String, output: &mut Output) -> Result<bool, Failure> {
    let way = Way::of(global).await?;
    let request = pb::GetRequest { context: None, key: key.clone().into() };
    let answer = ask!(way, get, request)?;
    let Some(value) = answer.value else { return Ok(false) };
    match output.format_of_lines() {
        Format::Json => {
            output.json(&json!({ "key": format::base64(key.as_bytes()), "value": format::base64(&value) }))?
        }
        _ => output.line(&value)?,
    }
    Ok(true)
}

pub async fn put(global: &Global, key: String, value: String, output: &mut Output) -> Result<bool, Failure> {
    let way = Way::of(global).await?;
    let request = pb::PutRequest { context: None, key: key.clone().into(), value: value.into() };
    ask!(way, put, request)?;
    match output.format_of_lines() {
        Format::Json => output.json(&json!({}))?,
        _ => output.line("OK")?,
    }
    Ok(true)
}

pub async fn delete(global: &Global, key: String, output: &mut Output) -> Result<bool, Failure> {
    let way = Way::of(global).await?;
    let request = pb::DeleteRequest { context: None, key: key.clone().into() };
    let answer = ask!(way, delete, request)?;
    let deleted = u8::from(answer.existed);
    match output.format_of_lines() {
        Format::Json => output.json(&json!({ "deleted": deleted }))?,
        _ => output.line(deleted.to_string())?,
    }
    Ok(true)
}

pub async fn scan(
    global: &Global,
    start: Vec<u8>,
    end: Vec<u8>,
    limit: usize,
    keys_only: bool,
    output: &mut Output,
) -> Result<bool, Failure> {
    let way = Way::of(global).await?;
    let (mut start, end) = (Bytes::from(start), Bytes::from(end));
    let (mut left, mut all) = (limit, Vec::new());
    while left > 0 {
        let rows_max = u32::try_from(left).unwrap_or(u32::MAX);
        let request = pb::ScanRequest {
            context: None,
            start: start.clone(),
            end: end.clone(),
            rows_max,
            bytes_max: 0,
            keys_only,
        };
        let answer = ask!(way, scan, request)?;
        left -= answer.pairs.len().min(left);
        for pb::Pair { key, value } in answer.pairs {
            match output.format() {
                Format::Table => {
                    let value = if keys_only { String::new() } else { format::readable(&value) };
                    all.push((vec![format::readable(&key), value], json!(null)));
                }
                Format::Json => {
                    let pair = json!({ "key": format::base64(&key), "value": format::base64(&value) });
                    all.push((Vec::new(), pair));
                }
                Format::Simple => {
                    output.line(&key)?;
                    if !keys_only {
                        output.line(&value)?;
                    }
                }
            }
        }
        match answer.resume {
            Some(resume) => start = resume,
            None => break,
        }
    }
    match output.format() {
        Format::Table => output.table(&["KEY", "VALUE"], all.into_iter().map(|(row, _)| row))?,
        Format::Json => output.json(&all.into_iter().map(|(_, pair)| pair).collect())?,
        Format::Simple => {}
    }
    Ok(true)
}

/// The first key behind all that begin like this; empty: there is none.
pub fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_where_others_begin() {
        assert_eq!(end_of_prefix(b"a"), b"b");
        assert_eq!(end_of_prefix(b"a\xff\xff"), b"b");
        assert_eq!(end_of_prefix(b"\xff"), b"");
        assert_eq!(end_of_prefix(b""), b"");
    }
}
