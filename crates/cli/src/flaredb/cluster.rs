//! What concerns the cluster, asked of the placement driver.

use cli::failure::Failure;
use cli::format;
use cli::output::{Format, Output};
use proto::placement as pb;
use rpc::client::PlacementClient;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::args::Global;
use crate::connect::connect;
use crate::pd::{no_leader, not_there, unknown_there};

/// The first member that is there.
async fn reach_one(global: &Global) -> Result<(&str, Channel), Failure> {
    let mut failure = None;
    for endpoint in global.members() {
        match connect(global, endpoint).await {
            Ok(channel) => return Ok((endpoint, channel)),
            Err(why) if why.text.ends_with("connection refused") => failure = Some(not_there(endpoint)),
            Err(why) => failure = Some(why),
        }
    }
    Err(failure.expect("there is the endpoint"))
}

/// Whether all is well.
pub async fn status(global: &Global, output: &mut Output) -> Result<bool, Failure> {
    let (endpoint, channel) = reach_one(global).await?;
    let answer = PlacementClient::new(channel).cluster_status(pb::ClusterStatusRequest {}).await;
    let answer = answer.map_err(|status| match status.code() {
        Code::Unimplemented => unknown_there(endpoint),
        _ => no_leader(endpoint, status.message()).unwrap_or_else(|| Failure::of_status(endpoint, &status)),
    })?;
    let status = answer.into_inner();
    let healthy = status.problems.is_empty();
    if output.format() == Format::Json {
        output.json(&as_json(&status))?;
        return Ok(healthy);
    }
    output.line(format!("cluster: {:016x}", status.cluster_id))?;
    output.line(format!("health: {}", if healthy { "healthy" } else { "degraded" }))?;
    for problem in &status.problems {
        output.line(format!("problem: {problem}"))?;
    }
    for refused in &status.refused {
        let pb::RefusedStore { store_id, client_url, why, seconds_ago, .. } = refused;
        output.line(format!("refused: store_id {store_id} at {client_url}, {seconds_ago}s ago: {why}"))?;
    }
    output.line(format!(
        "regions: {} (pending peers {}, down peers {}, operators {})",
        status.region_count, status.pending_peers, status.down_peers, status.operators
    ))?;
    let head = ["STORE", "STATE", "ADDRESS", "REGIONS", "LEADERS", "CAPACITY", "AVAILABLE", "LAST HEARD"];
    let rows: Vec<Vec<String>> = status.stores.iter().map(row).collect();
    let members = status.members.iter().map(|member| {
        let role = match member {
            pb::Member { leader: true, .. } => "leader",
            pb::Member { learner: true, .. } => "learner",
            _ => "follower",
        };
        vec![member.id.to_string(), member.name.clone(), member.client_urls.join(","), role.to_owned()]
    });
    let members: Vec<Vec<String>> = members.collect();
    if output.format() == Format::Table {
        output.table(&head, rows)?;
        output.table(&["PD MEMBER", "NAME", "ADDRESS", "ROLE"], members)?;
    } else {
        for row in rows {
            output.line(format!("store: {}", row.join(" ")))?;
        }
        for member in members {
            output.line(format!("pd: {}", member.join(" ")))?;
        }
    }
    Ok(healthy)
}

fn row(status: &pb::StoreStatus) -> Vec<String> {
    let store = status.store.clone().unwrap_or_default();
    let stats = status.stats.unwrap_or_default();
    vec![
        store.id.to_string(),
        status.state.clone(),
        store.client_url,
        stats.region_count.to_string(),
        stats.leader_count.to_string(),
        format::size(stats.capacity_bytes).replace(' ', ""),
        format::size(stats.available_bytes).replace(' ', ""),
        status.silent_seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds}s")),
    ]
}

fn as_json(status: &pb::ClusterStatusResponse) -> Value {
    let store = |status: &pb::StoreStatus| {
        let (store, stats) = (status.store.clone().unwrap_or_default(), status.stats.unwrap_or_default());
        json!({
            "id": store.id,
            "state": status.state,
            "address": store.client_url,
            "region_count": stats.region_count,
            "leader_count": stats.leader_count,
            "capacity": stats.capacity_bytes,
            "available": stats.available_bytes,
            "silent_seconds": status.silent_seconds,
        })
    };
    let refused = |refused: &pb::RefusedStore| {
        json!({
            "store_id": refused.store_id,
            "incarnation": format!("{:016x}", refused.incarnation),
            "address": refused.client_url,
            "reason": refused.why,
            "seconds_ago": refused.seconds_ago,
        })
    };
    let member = |member: &pb::Member| json!({ "id": member.id, "name": member.name, "client_urls": member.client_urls, "leader": member.leader, "learner": member.learner });
    json!({
        "cluster_id": format!("{:016x}", status.cluster_id),
        "healthy": status.problems.is_empty(),
        "problems": status.problems,
        "regions": status.region_count,
        "pending_peers": status.pending_peers,
        "down_peers": status.down_peers,
        "operators": status.operators,
        "stores": status.stores.iter().map(store).collect::<Vec<_>>(),
        "refused": status.refused.iter().map(refused).collect::<Vec<_>>(),
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
    })
}
