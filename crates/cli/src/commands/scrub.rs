//! `scrub`: a node reads all that lies in its data folder again, to find damage; this waits and tells how far it is.

use std::time::Duration;

use proto::admin::{ScrubRequest, ScrubResponse};
use serde_json::{Value, json};

use super::members;
use crate::args::ClusterArgs;
use crate::connect::{self, Client, Repeat};
use crate::failure::{Failure, Kind};
use crate::format::size;
use crate::output::{Format, Output};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often progress is told.
const SAY_EVERY: u32 = 25;

pub async fn run(client: &Client, args: ClusterArgs, out: &mut Output) -> Result<(), Failure> {
    let mut failure = None;
    let mut answers = Vec::new();
    for endpoint in members::endpoints(client, args.cluster).await? {
        match scrub(client, &endpoint).await {
            Ok(done) if done.last == WHOLE => answers.push((endpoint, done)),
            Ok(done) => {
                let why = format!("{endpoint}: {}", done.last);
                failure.get_or_insert(
                    Failure::new(Kind::Refused, why)
                        .advise("the node is rebuilt from the others by itself; see its status and log"),
                );
                answers.push((endpoint, done));
            }
            Err(why) => {
                failure.get_or_insert(why);
            }
        }
    }
    match out.format_of_lines() {
        Format::Json => {
            let answers = answers.iter().map(|(endpoint, done)| to_json(endpoint, done)).collect();
            out.json(&answers)?;
        }
        _ => {
            for (endpoint, done) in &answers {
                out.line(format!("{endpoint}: {}; {} read", done.last, size(done.bytes_done)))?;
                if done.unchecked_files > 0 {
                    out.line(format!("{endpoint}: {} files have no checksum yet", done.unchecked_files))?;
                }
            }
        }
    }
    out.flush()?;
    failure.map_or(Ok(()), Err)
}

/// How a server says that a pass found nothing.
const WHOLE: &str = "nothing is damaged";

/// Begins a pass and waits for its end.
async fn scrub(client: &Client, endpoint: &str) -> Result<ScrubResponse, Failure> {
    let client = client.only(endpoint);
    let ask = |start| {
        client.call(
            Repeat::Safe,
            move |channel| async move { connect::admin(channel).scrub(ScrubRequest { start }).await },
        )
    };
    let mut told = 0;
    let asked = ask(true).await?;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = ask(false).await?;
        if now.process != asked.process {
            let why = format!("{endpoint}: the node began anew before its pass had ended");
            return Err(Failure::new(Kind::Refused, why).advise("its log says why; `status` shows how it is"));
        }
        if now.passes >= asked.awaited_passes {
            return Ok(now);
        }
        told += 1;
        if told % SAY_EVERY == 0 {
            eprintln!("{endpoint}: {} of {}", size(now.bytes_done), size(now.bytes_total));
        }
    }
}

fn to_json(endpoint: &str, done: &ScrubResponse) -> Value {
    json!({
        "endpoint": endpoint,
        "last": done.last,
        "bytes": done.bytes_done,
        "passes": done.passes,
        "findings": done.findings,
        "unchecked_files": done.unchecked_files,
        "ended_unix_seconds": done.ended_unix_seconds,
    })
}
