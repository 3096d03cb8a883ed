//! `compact`.

use proto::etcdserverpb::CompactionRequest;
use serde_json::json;

use crate::args::CompactArgs;
use crate::connect::{self, Client, Repeat};
use crate::failure::Failure;
use crate::format::header_json;
use crate::output::{Format, Output};

pub async fn run(client: &Client, args: CompactArgs, out: &mut Output) -> Result<(), Failure> {
    let request = CompactionRequest { revision: args.revision, physical: args.physical };
    let response =
        client.call(Repeat::Never, |channel| async move { connect::kv(channel).compact(request).await }).await?;
    match out.format_of_lines() {
        Format::Json => out.json(&json!({ "header": header_json(response.header.as_ref()) }))?,
        _ => out.line(format!("compacted revision {}", args.revision))?,
    }
    Ok(())
}
