//! `move-leader`, `alarm`, `defrag`, `hashkv`.

use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmType, DefragmentRequest, HashKvRequest, MoveLeaderRequest};
use serde_json::json;

use super::members;
use crate::args::{AlarmCommand, HashKvArgs};
use crate::connect::{self, Client, Repeat};
use crate::failure::{Failure, Kind};
use crate::format::header_json;
use crate::output::{Format, Output};

pub async fn move_leader(client: &Client, node_id: u64, out: &mut Output) -> Result<(), Failure> {
    let request = MoveLeaderRequest { target_id: node_id };
    let ask = |channel| async move { connect::maintenance(channel).move_leader(request).await };
    let answer = client.call(Repeat::Never, ask).await?;
    match out.format_of_lines() {
        Format::Json => out.json(&json!({ "header": header_json(answer.header.as_ref()) }))?,
        _ => out.line(format!("leadership moved to node {node_id}"))?,
    }
    Ok(())
}

pub async fn alarm(client: &Client, command: AlarmCommand, out: &mut Output) -> Result<(), Failure> {
    let (action, repeat) = match command {
        AlarmCommand::List => (AlarmAction::Get, Repeat::Safe),
        AlarmCommand::Disarm => (AlarmAction::Deactivate, Repeat::Never),
    };
    // Kind "none" and member zero mean all of them.
    let request = AlarmRequest { action: action as i32, member_id: 0, alarm: AlarmType::None as i32 };
    let answer =
        client.call(repeat, |channel| async move { connect::maintenance(channel).alarm(request).await }).await?;
    let name = |kind| AlarmType::try_from(kind).map_or("UNKNOWN", |kind| kind.as_str_name());
    match out.format() {
        Format::Json => {
            let alarms = answer.alarms.iter().map(|alarm| json!({ "memberID": alarm.member_id, "alarm": alarm.alarm }));
            let alarms: Vec<_> = alarms.collect();
            out.json(&json!({ "header": header_json(answer.header.as_ref()), "alarms": alarms }))?;
        }
        Format::Table => {
            let rows =
                answer.alarms.iter().map(|alarm| vec![alarm.member_id.to_string(), name(alarm.alarm).to_owned()]);
            out.table(&["NODE", "ALARM"], rows)?;
        }
        Format::Simple => {
            for alarm in &answer.alarms {
                out.line(format!("memberID:{} alarm:{}", alarm.member_id, name(alarm.alarm)))?;
            }
        }
    }
    Ok(())
}

pub async fn defragment(client: &Client, cluster: bool, out: &mut Output) -> Result<(), Failure> {
    let mut failure = None;
    for endpoint in members::endpoints(client, cluster).await? {
        let ask = |channel| async move { connect::maintenance(channel).defragment(DefragmentRequest {}).await };
        match client.only(&endpoint).call(Repeat::Safe, ask).await {
            Ok(_) => out.line(format!("{endpoint}: gives space back in the background"))?,
            Err(why) => report_and_keep(&mut failure, why),
        }
    }
    failure.map_or(Ok(()), Err)
}

pub async fn hash_kv(client: &Client, args: HashKvArgs, out: &mut Output) -> Result<(), Failure> {
    let mut failure = None;
    let mut answers = Vec::new();
    let request = HashKvRequest { revision: args.rev };
    for endpoint in members::endpoints(client, args.cluster).await? {
        let ask = |channel| async move { connect::maintenance(channel).hash_kv(request).await };
        match client.only(&endpoint).call(Repeat::Safe, ask).await {
            Ok(answer) => answers.push((endpoint, answer)),
            Err(why) => report_and_keep(&mut failure, why),
        }
    }
    match out.format() {
        Format::Json => {
            let answers = answers.iter().map(|(endpoint, answer)| {
                json!({
                    "Endpoint": endpoint,
                    "HashKV": {
                        "header": header_json(answer.header.as_ref()),
                        "hash": answer.hash,
                        "hash_revision": answer.hash_revision,
                        "compact_revision": answer.compact_revision,
                    }
                })
            });
            let answers = answers.collect();
            out.json(&answers)?;
        }
        Format::Table => {
            let rows = answers.iter().map(|(endpoint, answer)| {
                let numbers = [i64::from(answer.hash), answer.hash_revision, answer.compact_revision];
                [endpoint.clone()].into_iter().chain(numbers.map(|number| number.to_string())).collect()
            });
            out.table(&["ENDPOINT", "HASH", "UP TO REVISION", "COMPACTED"], rows)?;
        }
        Format::Simple => {
            for (endpoint, answer) in &answers {
                out.line(format!("{endpoint}, {}, {}", answer.hash, answer.hash_revision))?;
            }
        }
    }
    let differ = answers.windows(2).any(|pair| {
        let [(_, a), (_, b)] = pair else { return false };
        (a.hash_revision, a.compact_revision) == (b.hash_revision, b.compact_revision) && a.hash != b.hash
    });
    if differ {
        out.flush()?;
        return Err(Failure::new(Kind::Refused, "nodes hold different data at the same revision")
            .advise("compare with --rev again; if it stays, rebuild the node that differs from most"));
    }
    failure.map_or(Ok(()), Err)
}

/// The first failure decides the exit code; the others are told as they come.
fn report_and_keep(failure: &mut Option<Failure>, why: Failure) {
    match failure {
        None => *failure = Some(why),
        Some(_) => {
            why.report();
        }
    }
}
