//! `watch`.
//!
//! A watch that loses its node goes on elsewhere from the revision after the last that was printed, so that nothing is
//! missed and nothing is printed twice. It has no deadline; only connecting has.

use proto::etcdserverpb::watch_create_request::FilterType;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use serde_json::json;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::Channel;

use crate::args::{WatchArgs, WithoutEvents};
use crate::connect::{self, Client, pause};
use crate::failure::{Failure, Kind};
use crate::format::{header_json, key_value_json};
use crate::output::{Format, Output};

/// How long a watch looks for a node before it gives up, in attempts of one second.
const ATTEMPTS_MAX: u32 = 30;

pub async fn run(client: &Client, args: WatchArgs, out: &mut Output) -> Result<(), Failure> {
    let (key, range_end) = args.keys.range()?;
    let filter = args.without.map(|without| match without {
        WithoutEvents::Put => FilterType::Noput as i32,
        WithoutEvents::Delete => FilterType::Nodelete as i32,
    });
    let mut watch = Watch {
        create: WatchCreateRequest {
            key,
            range_end,
            start_revision: args.rev,
            progress_notify: args.progress,
            filters: filter.into_iter().collect(),
            prev_kv: args.prev_kv,
            ..Default::default()
        },
        progress: args.progress,
        events_left: args.events,
        begun: false,
    };
    let mut attempts = 0;
    loop {
        let failure = match client.any_channel().await {
            Ok((endpoint, channel)) => {
                let begun_before = std::mem::take(&mut watch.begun);
                let followed = tokio::select! {
                    followed = watch.follow(&endpoint, channel, out) => followed,
                    _ = tokio::signal::ctrl_c() => return Ok(()),
                };
                client.turn_away_from(&endpoint);
                match followed {
                    Ok(()) => return Ok(()),
                    Err(failure) if !matches!(failure.kind, Kind::Unreachable | Kind::NoLeader) => return Err(failure),
                    Err(failure) => {
                        if watch.begun {
                            attempts = 0;
                        }
                        watch.begun |= begun_before;
                        failure
                    }
                }
            }
            Err(failure) => failure,
        };
        attempts += 1;
        // A watch that never began is more likely mistaken than unlucky.
        if !watch.begun || attempts > ATTEMPTS_MAX {
            return Err(failure);
        }
        eprintln!("{}; looking for another node to go on from revision {}", failure.text, watch.create.start_revision);
        pause(1.0).await;
    }
}

struct Watch {
    create: WatchCreateRequest,
    progress: bool,
    events_left: Option<u64>,
    /// The server took the watch.
    begun: bool,
}

impl Watch {
    /// Prints events until the watch is over.
    async fn follow(&mut self, endpoint: &str, channel: Channel, out: &mut Output) -> Result<(), Failure> {
        let broken = |status: &tonic::Status| Failure::of_status(endpoint, status);
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(self.create.clone())) };
        // The stream of requests stays open for as long as the watch does.
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut responses =
            connect::watch(channel).watch(requests).await.map_err(|status| broken(&status))?.into_inner();
        loop {
            let response = match responses.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(broken(&tonic::Status::new(Code::Unavailable, "the watch was closed"))),
                Err(status) => return Err(broken(&status)),
            };
            if response.canceled {
                return Err(canceled(endpoint, &response));
            }
            if response.created {
                self.begun = true;
                let revision = response.header.as_ref().map_or(0, |header| header.revision);
                if self.create.start_revision == 0 {
                    self.create.start_revision = revision + 1;
                }
                continue;
            }
            if response.events.is_empty() {
                if self.progress {
                    let revision = response.header.as_ref().map_or(0, |header| header.revision);
                    self.create.start_revision = self.create.start_revision.max(revision + 1);
                    print_progress(&response, revision, out)?;
                }
                continue;
            }
            for event in &response.events {
                if self.events_left == Some(0) {
                    return Ok(());
                }
                print_event(event, &response, out)?;
                self.events_left = self.events_left.map(|left| left - 1);
            }
            out.flush()?;
            let last = response.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
            self.create.start_revision = last.unwrap_or(0) + 1;
            if self.events_left == Some(0) {
                return Ok(());
            }
        }
    }
}

fn print_event(event: &Event, response: &WatchResponse, out: &mut Output) -> Result<(), Failure> {
    let empty = KeyValue::default();
    let kv = event.kv.as_ref().unwrap_or(&empty);
    let kind = if event.r#type() == EventType::Put { "PUT" } else { "DELETE" };
    if out.format_of_lines() == Format::Json {
        let mut line =
            json!({ "header": header_json(response.header.as_ref()), "type": kind, "kv": key_value_json(kv) });
        if let Some(prev_kv) = &event.prev_kv {
            line["prev_kv"] = key_value_json(prev_kv);
        }
        return Ok(out.json(&line)?);
    }
    out.line(kind)?;
    if let Some(prev_kv) = &event.prev_kv {
        out.line(&prev_kv.key)?;
        out.line(&prev_kv.value)?;
    }
    out.line(&kv.key)?;
    out.line(&kv.value)?;
    Ok(())
}

fn print_progress(response: &WatchResponse, revision: i64, out: &mut Output) -> Result<(), Failure> {
    match out.format_of_lines() {
        Format::Json => out.json(&json!({ "header": header_json(response.header.as_ref()), "type": "PROGRESS" }))?,
        _ => out.line(format!("PROGRESS {revision}"))?,
    }
    Ok(out.flush()?)
}

fn canceled(endpoint: &str, response: &WatchResponse) -> Failure {
    if response.compact_revision > 0 {
        return Failure::new(
            Kind::Refused,
            format!("{endpoint}: history begins at revision {}", response.compact_revision),
        )
        .advise(format!("read the keys with `get`, then watch with --rev {}", response.compact_revision));
    }
    let why = if response.cancel_reason.is_empty() { "the watch was canceled" } else { &response.cancel_reason };
    Failure::new(Kind::Refused, format!("{endpoint}: {why}"))
}
