//! Raw keys.

use bytes::Bytes;
use cli::failure::Failure;
use cli::format;
use cli::output::{Format, Output};
use proto::flaredb as pb;
use rpc::client::RawClient;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::args::Global;
use crate::connect::connect;

/// Asks the endpoint: a store or a placement driver, both know the way.
async fn ask<T>(
    global: &Global,
    call: impl AsyncFn(RawClient<Channel>) -> Result<Response<T>, Status>,
) -> Result<T, Failure> {
    let answer = call(client_of(connect(global, &global.endpoint).await?)).await;
    answer.map(Response::into_inner).map_err(|status| Failure::of_status(&global.endpoint, &status))
}

fn client_of(channel: Channel) -> RawClient<Channel> {
    RawClient::new(channel).max_decoding_message_size(rpc::client::RESPONSE_BYTES_MAX)
}

pub async fn get(global: &Global, key: String, output: &mut Output) -> Result<bool, Failure> {
    let request = pb::GetRequest { context: None, key: key.clone().into() };
    let answer = ask(global, async |mut client| client.get(request.clone()).await).await?;
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
    let request = pb::PutRequest { context: None, key: key.clone().into(), value: value.into() };
    ask(global, async |mut client| client.put(request.clone()).await).await?;
    match output.format_of_lines() {
        Format::Json => output.json(&json!({}))?,
        _ => output.line("OK")?,
    }
    Ok(true)
}

pub async fn delete(global: &Global, key: String, output: &mut Output) -> Result<bool, Failure> {
    let request = pb::DeleteRequest { context: None, key: key.clone().into() };
    let answer = ask(global, async |mut client| client.delete(request.clone()).await).await?;
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
        let answer = ask(global, async |mut client| client.scan(request.clone()).await).await?;
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
