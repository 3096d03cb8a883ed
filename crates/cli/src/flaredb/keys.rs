//! Raw keys.

use bytes::Bytes;
use cli::failure::Failure;
use cli::format;
use cli::output::{Format, Output};
use proto::flaredb as pb;
use proto::placement::GetRegionRequest;
use rpc::client::{PlacementClient, RawClient};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::Global;
use super::connect::connect;

/// Asks the endpoint, and if that is a placement driver, the store that it names.
async fn ask<T>(
    global: &Global,
    key: &[u8],
    call: impl AsyncFn(RawClient<Channel>) -> Result<Response<T>, Status>,
) -> Result<T, Failure> {
    let channel = connect(global, &global.endpoint).await?;
    let status = match call(client_of(channel.clone())).await {
        Ok(answer) => return Ok(answer.into_inner()),
        Err(status) => status,
    };
    if status.code() != Code::Unimplemented {
        return Err(Failure::of_status(&global.endpoint, &status));
    }
    let request = GetRegionRequest { key: Bytes::copy_from_slice(key) };
    let found = PlacementClient::new(channel).get_region(request).await;
    let found = found.map_err(|status| Failure::of_status(&global.endpoint, &status))?.into_inner();
    let mut stores = found.stores;
    stores.sort_by_key(|store| store.id != found.leader_store);
    let mut failure = Failure::new(cli::failure::Kind::Refused, "the placement driver names no store for this key");
    for store in stores {
        match connect(global, &store.client_url).await {
            Ok(channel) => {
                let answer = call(client_of(channel)).await;
                return answer.map(Response::into_inner).map_err(|why| Failure::of_status(&store.client_url, &why));
            }
            Err(why) => failure = why,
        }
    }
    Err(failure)
}

fn client_of(channel: Channel) -> RawClient<Channel> {
    RawClient::new(channel).max_decoding_message_size(rpc::client::RESPONSE_BYTES_MAX)
}

pub async fn get(global: &Global, key: String, output: &mut Output) -> Result<bool, Failure> {
    let request = pb::GetRequest { context: None, key: key.clone().into() };
    let answer = ask(global, key.as_bytes(), async |mut client| client.get(request.clone()).await).await?;
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
    ask(global, key.as_bytes(), async |mut client| client.put(request.clone()).await).await?;
    match output.format_of_lines() {
        Format::Json => output.json(&json!({}))?,
        _ => output.line("OK")?,
    }
    Ok(true)
}

pub async fn delete(global: &Global, key: String, output: &mut Output) -> Result<bool, Failure> {
    let request = pb::DeleteRequest { context: None, key: key.clone().into() };
    let answer = ask(global, key.as_bytes(), async |mut client| client.delete(request.clone()).await).await?;
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
        let answer = ask(global, &start, async |mut client| client.scan(request.clone()).await).await?;
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
