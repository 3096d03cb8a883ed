//! `lease grant`, `revoke`, `timetolive`, `list`, `keep-alive`.

use std::time::Duration;

use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
};
use serde_json::json;
use tokio_stream::StreamExt as _;

use crate::args::LeaseCommand;
use crate::connect::{self, Client, Repeat};
use crate::failure::{Failure, Kind};
use crate::format::{base64, header_json, lease_id, readable};
use crate::output::{Format, Output};

pub async fn run(client: &Client, command: LeaseCommand, out: &mut Output) -> Result<(), Failure> {
    match command {
        LeaseCommand::Grant { ttl, id } => grant(client, ttl, id, out).await,
        LeaseCommand::Revoke { id } => revoke(client, id, out).await,
        LeaseCommand::Timetolive { id, keys } => time_to_live(client, id, keys, out).await,
        LeaseCommand::List => list(client, out).await,
        LeaseCommand::KeepAlive { id, once } => keep_alive(client, id, once, out).await,
    }
}

async fn grant(client: &Client, ttl: i64, id: Option<i64>, out: &mut Output) -> Result<(), Failure> {
    let request = LeaseGrantRequest { ttl, id: id.unwrap_or_default() };
    let answer =
        client.call(Repeat::Never, |channel| async move { connect::lease(channel).lease_grant(request).await }).await?;
    match out.format_of_lines() {
        Format::Json => {
            out.json(&json!({ "header": header_json(answer.header.as_ref()), "ID": answer.id, "TTL": answer.ttl }))?
        }
        _ => out.line(format!("lease {} granted with TTL({}s)", lease_id(answer.id), answer.ttl))?,
    }
    Ok(())
}

async fn revoke(client: &Client, id: i64, out: &mut Output) -> Result<(), Failure> {
    let request = LeaseRevokeRequest { id };
    let answer = client
        .call(Repeat::Never, |channel| async move { connect::lease(channel).lease_revoke(request).await })
        .await?;
    match out.format_of_lines() {
        Format::Json => out.json(&json!({ "header": header_json(answer.header.as_ref()) }))?,
        _ => out.line(format!("lease {} revoked", lease_id(id)))?,
    }
    Ok(())
}

async fn time_to_live(client: &Client, id: i64, keys: bool, out: &mut Output) -> Result<(), Failure> {
    let request = LeaseTimeToLiveRequest { id, keys };
    let ask = |channel| async move { connect::lease(channel).lease_time_to_live(request).await };
    let answer = client.call(Repeat::Safe, ask).await?;
    if out.format_of_lines() == Format::Json {
        return Ok(out.json(&json!({
            "header": header_json(answer.header.as_ref()),
            "id": answer.id,
            "ttl": answer.ttl,
            "granted-ttl": answer.granted_ttl,
            "keys": answer.keys.iter().map(|key| base64(key)).collect::<Vec<_>>(),
        }))?);
    }
    if answer.ttl < 0 {
        return Ok(out.line(format!("lease {} already expired", lease_id(id)))?);
    }
    let mut line =
        format!("lease {} granted with TTL({}s), remaining({}s)", lease_id(id), answer.granted_ttl, answer.ttl);
    if keys {
        let keys: Vec<String> = answer.keys.iter().map(|key| readable(key)).collect();
        line.push_str(&format!(", attached keys([{}])", keys.join(" ")));
    }
    Ok(out.line(line)?)
}

async fn list(client: &Client, out: &mut Output) -> Result<(), Failure> {
    let ask = |channel| async move { connect::lease(channel).lease_leases(LeaseLeasesRequest {}).await };
    let answer = client.call(Repeat::Safe, ask).await?;
    if out.format_of_lines() == Format::Json {
        let leases: Vec<_> = answer.leases.iter().map(|lease| json!({ "id": lease.id })).collect();
        return Ok(out.json(&json!({ "header": header_json(answer.header.as_ref()), "leases": leases }))?);
    }
    out.line(format!("found {} leases", answer.leases.len()))?;
    for lease in &answer.leases {
        out.line(lease_id(lease.id))?;
    }
    Ok(())
}

/// Renews until Ctrl-C, three times within each TTL; goes on at another endpoint when one is lost.
async fn keep_alive(client: &Client, id: i64, once: bool, out: &mut Output) -> Result<(), Failure> {
    loop {
        let answer = tokio::select! {
            answer = renew(client, id) => answer?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        if answer.ttl <= 0 {
            return Err(Failure::new(Kind::Refused, format!("lease {} expired or revoked", lease_id(id)))
                .advise("its keys are gone; make another with `lease grant`"));
        }
        match out.format_of_lines() {
            Format::Json => {
                out.json(&json!({ "header": header_json(answer.header.as_ref()), "ID": answer.id, "TTL": answer.ttl }))?
            }
            _ => out.line(format!("lease {} keepalived with TTL({})", lease_id(id), answer.ttl))?,
        }
        out.flush()?;
        if once {
            return Ok(());
        }
        let pause = Duration::from_millis((answer.ttl as u64).saturating_mul(1000) / 3).min(Duration::from_secs(3600));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// One renewal. A node that is lost is tried again, elsewhere if possible, for as long as a command may take.
async fn renew(client: &Client, id: i64) -> Result<LeaseKeepAliveResponse, Failure> {
    let mut tries_left = 5;
    loop {
        let (endpoint, channel) = client.any_channel().await?;
        let ask = async {
            let requests = tokio_stream::once(LeaseKeepAliveRequest { id }).chain(tokio_stream::pending());
            let mut answers = connect::lease(channel).lease_keep_alive(requests).await?.into_inner();
            answers.message().await?.ok_or_else(|| tonic::Status::unavailable("the stream was closed"))
        };
        let failure = match client.within(ask).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => Failure::of_status(&endpoint, &status),
            Err(_) => Failure::timed_out(&endpoint),
        };
        client.turn_away_from(&endpoint);
        if tries_left == 0 || failure.kind == Kind::Refused {
            return Err(failure);
        }
        tries_left -= 1;
        connect::pause(0.5).await;
    }
}
