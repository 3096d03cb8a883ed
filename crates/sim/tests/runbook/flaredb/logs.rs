//! Log Analysis: the lines of a healthy FlareDB and its warning signs, each seen when what it tells of happens; and the
//! documents that the runbook points to.

use std::fs;

use super::book::{DOCUMENTS, NOT_RUN, logs, registering, stuck, timeouts};
use super::cluster::Cluster;
use crate::settings::repository;

#[test]
fn every_line_is_said_when_it_is_true() {
    let mut cluster = Cluster::found(1, 3);
    for store in 1..=3 {
        assert!(cluster.said(store).contains(&format!("{}{store}", logs::REGISTERED)));
    }
    // The first region came to two of the three stores as a whole.
    assert!((1..=3).filter(|store| cluster.said(*store).contains(logs::SNAPSHOT)).count() >= 2);

    let leader = cluster.leader();
    cluster.fill(leader, 0..20, 100);
    let scan = format!("flaredb-client --endpoint http://{}:2379 scan", cluster.store_ip(leader));
    cluster.world.operator(&scan).succeeds();
    cluster.until_said(leader, &format!("{}20, latency=", logs::QUERY));

    // A store is gone: errors of what is led elsewhere, counted by their code.
    let gone = leader % 3 + 1;
    cluster.world.kill(cluster.store(gone));
    cluster.until_said(leader, &format!("{}{gone} regions=1", logs::REPLICATION));
    let machine = cluster.store(leader);
    cluster.world.on(machine, logs::ERRORS).succeeds().shows(logs::REPLICATION);
    cluster.world.on(machine, logs::COUNT_ERRORS).succeeds().shows("code=CF8515");
    cluster.world.start(cluster.store(gone));
    cluster.until_said(leader, &format!("INFO flaredb_raft: Replicates again, peer=store{gone}"));

    // A store that comes when there is data gets it as a whole.
    let new = cluster.add_store();
    cluster.world.start(cluster.store(new));
    cluster.world.stop(cluster.store(gone));
    cluster.set_policy(r#"{"store-disconnected-time": "3s", "max-store-down-time": "10s"}"#);
    cluster.until_said(new, logs::SNAPSHOT);

    // The placement driver is gone, and comes back.
    cluster.world.kill(cluster.pd(1));
    cluster.until_said(leader, logs::HEARTBEAT);
    cluster.world.operator(&scan).succeeds();
    cluster.world.start(cluster.pd(1));
    cluster.until_said(leader, "INFO flaredb_pd_client: Heartbeat to PD succeeded again, failures=");
}

/// What the suite does not run is written down, and what the runbook points to is there.
#[test]
fn documents_are_there() {
    for path in DOCUMENTS {
        let text = fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(text.lines().count() > 10, "{path} says something");
    }
    let page = fs::read_to_string(repository().join(DOCUMENTS[0])).unwrap();
    for text in [registering::ERROR, stuck::ERROR, timeouts::ERROR, "Compaction is slow", "Failed to replicate log"] {
        assert!(page.contains(text), "{text} is explained in {}", DOCUMENTS[0]);
    }
    assert!(NOT_RUN.iter().all(|(line, why)| !line.is_empty() && !why.is_empty()));
}
