//! `get` and `del`.
//!
//! A large answer is printed as it comes: a range that the server can stream is asked for as a stream, so that neither side
//! holds all of it.

use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::{DeleteRangeRequest, RangeRequest, RangeResponse};
use proto::mvccpb::KeyValue;
use serde_json::{Value, json};
use tonic::Code;

use crate::args::{DelArgs, GetArgs, Order, SortBy};
use crate::connect::{self, Client, Repeat};
use crate::failure::Failure;
use crate::format::{header_json, hex, key_value_json, lease_id, readable};
use crate::output::{Format, Output};

pub async fn get(client: &Client, args: GetArgs, out: &mut Output) -> Result<(), Failure> {
    let request = range_request(&args)?;
    let show = Show::of(&args);
    let plain = out.format() == Format::Simple || args.print_value_only;
    let streamable = request.sort_order == 0 && request.sort_target == 0 && !request.range_end.is_empty();
    if plain && !args.count_only && streamable && stream(client, &request, show, out).await? {
        return Ok(());
    }
    let range = |channel| {
        let request = request.clone();
        async move { connect::kv(channel).range(request).await }
    };
    let response = client.call(Repeat::Safe, range).await?;
    print(&response, args.count_only, show, out)
}

pub async fn delete(client: &Client, args: DelArgs, out: &mut Output) -> Result<(), Failure> {
    let request = delete_request(&args)?;
    let delete = |channel| {
        let request = request.clone();
        async move { connect::kv(channel).delete_range(request).await }
    };
    let response = client.call(Repeat::Never, delete).await?;
    if out.format_of_lines() == Format::Json {
        let mut answer = json!({ "header": header_json(response.header.as_ref()), "deleted": response.deleted });
        if !response.prev_kvs.is_empty() {
            answer["prev_kvs"] = response.prev_kvs.iter().map(key_value_json).collect();
        }
        return Ok(out.json(&answer)?);
    }
    out.line(response.deleted.to_string())?;
    response.prev_kvs.iter().try_for_each(|kv| Show::default().print(kv, out))
}

pub fn range_request(args: &GetArgs) -> Result<RangeRequest, Failure> {
    let (key, range_end) = args.keys.range()?;
    let target = match args.sort_by {
        None | Some(SortBy::Key) => SortTarget::Key,
        Some(SortBy::Version) => SortTarget::Version,
        Some(SortBy::Create) => SortTarget::Create,
        Some(SortBy::Modify) => SortTarget::Mod,
        Some(SortBy::Value) => SortTarget::Value,
    };
    let order = match args.order {
        None => SortOrder::None,
        Some(Order::Ascend) => SortOrder::Ascend,
        Some(Order::Descend) => SortOrder::Descend,
    };
    Ok(RangeRequest {
        key,
        range_end,
        limit: args.limit,
        revision: args.rev,
        sort_order: order as i32,
        sort_target: target as i32,
        serializable: args.serializable || args.consistency.as_deref() == Some("s"),
        keys_only: args.keys_only,
        count_only: args.count_only,
        ..Default::default()
    })
}

pub fn delete_request(args: &DelArgs) -> Result<DeleteRangeRequest, Failure> {
    let (key, range_end) = args.keys.range()?;
    Ok(DeleteRangeRequest { key, range_end, prev_kv: args.prev_kv })
}

/// What of a key-value is printed plainly.
#[derive(Clone, Copy, Debug, Default)]
pub struct Show {
    keys_only: bool,
    values_only: bool,
    hex: bool,
}

impl Show {
    fn of(args: &GetArgs) -> Show {
        Show { keys_only: args.keys_only, values_only: args.print_value_only, hex: args.hex }
    }

    fn print(self, kv: &KeyValue, out: &mut Output) -> Result<(), Failure> {
        let mut line = |bytes: &[u8]| if self.hex { out.line(hex(bytes)) } else { out.line(bytes) };
        if !self.values_only {
            line(&kv.key)?;
        }
        if !self.keys_only {
            line(&kv.value)?;
        }
        Ok(())
    }
}

/// Prints the answer to a range, in whatever form.
pub fn print(response: &RangeResponse, count_only: bool, show: Show, out: &mut Output) -> Result<(), Failure> {
    match out.format() {
        Format::Json => out.json(&range_json(response))?,
        _ if count_only => out.line(response.count.to_string())?,
        Format::Table if !show.values_only => {
            let text = |bytes: &[u8]| if show.hex { hex(bytes) } else { readable(bytes) };
            let rows = response.kvs.iter().map(|kv| {
                let mut row = vec![text(&kv.key)];
                if !show.keys_only {
                    row.push(text(&kv.value));
                }
                row.extend([kv.mod_revision, kv.create_revision, kv.version].map(|number| number.to_string()));
                row.push(if kv.lease == 0 { String::new() } else { lease_id(kv.lease) });
                row
            });
            let head = ["KEY", "VALUE", "MODIFIED", "CREATED", "VERSION", "LEASE"];
            match show.keys_only {
                true => out.table(&["KEY", "MODIFIED", "CREATED", "VERSION", "LEASE"], rows)?,
                false => out.table(&head, rows)?,
            }
            if response.more {
                out.line(format!("{} of {} keys", response.kvs.len(), response.count))?;
            }
        }
        _ => response.kvs.iter().try_for_each(|kv| show.print(kv, out))?,
    }
    Ok(())
}

pub fn range_json(response: &RangeResponse) -> Value {
    let mut answer = json!({ "header": header_json(response.header.as_ref()), "count": response.count });
    if !response.kvs.is_empty() {
        answer["kvs"] = response.kvs.iter().map(key_value_json).collect();
    }
    if response.more {
        answer["more"] = json!(true);
    }
    answer
}

/// Prints a range as it streams in. False when the server does not stream; nothing was printed then.
async fn stream(client: &Client, request: &RangeRequest, show: Show, out: &mut Output) -> Result<bool, Failure> {
    let (endpoint, channel) = client.any_channel().await?;
    let timed_out = |_| Failure::timed_out(&endpoint);
    let opened = client.within(connect::kv(channel).range_stream(request.clone())).await.map_err(timed_out)?;
    let mut stream = match opened {
        Ok(stream) => stream.into_inner(),
        // Whatever it is, asking for it whole says it as well, at another endpoint if need be.
        Err(_) => return Ok(false),
    };
    let mut printed = false;
    loop {
        match client.within(stream.message()).await.map_err(timed_out)? {
            Ok(Some(chunk)) => {
                for kv in chunk.range_response.iter().flat_map(|response| &response.kvs) {
                    show.print(kv, out)?;
                    printed = true;
                }
            }
            Ok(None) => return Ok(true),
            Err(status) if !printed && matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {
                client.turn_away_from(&endpoint);
                return Ok(false);
            }
            Err(status) => return Err(Failure::of_status(&endpoint, &status)),
        }
    }
}
