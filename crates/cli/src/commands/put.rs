//! `put`.

use std::io::Read as _;

use bytes::Bytes;
use proto::etcdserverpb::PutRequest;
use serde_json::json;

use crate::args::PutArgs;
use crate::connect::{self, Client, Repeat};
use crate::failure::Failure;
use crate::format::{header_json, key_value_json};
use crate::output::{Format, Output};

pub async fn run(client: &Client, args: PutArgs, out: &mut Output) -> Result<(), Failure> {
    let value = match &args.value {
        Some(value) => Bytes::copy_from_slice(value.as_bytes()),
        None if args.ignore_value => Bytes::new(),
        None => {
            let mut value = Vec::new();
            std::io::stdin()
                .read_to_end(&mut value)
                .map_err(|error| Failure::local(format!("cannot read the value from standard input: {error}")))?;
            Bytes::from(value)
        }
    };
    let request = request(&args, value);
    let put = |channel| {
        let request = request.clone();
        async move { connect::kv(channel).put(request).await }
    };
    let response = client.call(Repeat::Never, put).await?;
    if out.format_of_lines() == Format::Json {
        let mut answer = json!({ "header": header_json(response.header.as_ref()) });
        if let Some(kv) = &response.prev_kv {
            answer["prev_kv"] = key_value_json(kv);
        }
        return Ok(out.json(&answer)?);
    }
    out.line("OK")?;
    if let Some(kv) = response.prev_kv {
        out.line(kv.key)?;
        out.line(kv.value)?;
    }
    Ok(())
}

pub fn request(args: &PutArgs, value: Bytes) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(args.key.as_bytes()),
        value,
        lease: args.lease.unwrap_or_default(),
        prev_kv: args.prev_kv,
        ignore_value: args.ignore_value,
        ignore_lease: args.ignore_lease,
    }
}
