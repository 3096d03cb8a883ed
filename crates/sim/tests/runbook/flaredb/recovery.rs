//! Placement drivers that are lost: what goes on without them, what a survivor must not do by itself, and the recovery as
//! docs/ops/flaredb.md teaches it.

use std::time::Duration;

use serde_json::Value;

use super::cluster::{Cluster, user_of};
use crate::settings::repository;

const WIPE: &str = "rm -rf /var/lib/placement-driver/*";
/// Many times an election timeout.
const OBSERVED: Duration = Duration::from_secs(8);

#[test]
fn of_three_members_that_lost_two_the_third_does_not_lead_until_it_is_told_to() {
    let cluster = Cluster::found(3, 3);
    let world = &cluster.world;
    cluster.fill(1, 0..50, 20);
    // The first one stays: it is the one that the harness asks.
    (1..=3).for_each(|member| world.kill(cluster.pd(member)));
    for lost in [2, 3] {
        world.on(cluster.pd(lost), WIPE).succeeds();
    }
    let machines = [1, 2, 3].map(|member| cluster.pd(member));
    std::thread::scope(|scope| {
        for machine in machines {
            scope.spawn(move || drop(world.on(machine, "timeout 20 systemctl start placement-driver")));
        }
    });
    std::thread::sleep(OBSERVED);
    // Two empty folders and one that is not found no second placement driver, and one of three elects nobody.
    for member in 1..=3 {
        let address = world.address(cluster.pd(member));
        let metrics = cluster.metrics(address);
        assert!(metrics.lines().any(|line| line == "placement_is_leader 0"), "member {member} leads:\n{metrics}");
        let page = world.operator(&format!("curl -s --max-time 5 http://{address}:2379/pd/api/v1/stores"));
        assert!(page.out.contains("\"error\""), "{page}");
    }
    // The stores go on without anybody to place their regions.
    world
        .operator(&format!("flaredb-client --endpoint http://{}:2379 put while-alone v", cluster.store_ip(2)))
        .succeeds();
    let scan = format!("flaredb-client --endpoint http://{}:2379 scan --keys-only", cluster.store_ip(3));
    assert_eq!(world.operator(&scan).succeeds().out.lines().count(), 51);

    // As it is taught.
    (1..=3).for_each(|member| world.stop(cluster.pd(member)));
    world.on(cluster.pd(1), "placement-driver recover").fails().shows("--unsafe");
    let recover = taught("placement-driver recover --unsafe --yes");
    let look = taught("placement-driver recover --unsafe");
    world.on(cluster.pd(1), &look).succeeds().shows("last_index: ").shows("nothing was changed");
    world.on(cluster.pd(2), &recover).fails().shows("nothing to recover");
    world.on(cluster.pd(1), &recover).succeeds().shows("a placement driver of one");
    world.start(cluster.pd(1));
    cluster.until_replicated(3);
    let status = cluster.line("flaredb-client --endpoint http://PD_IP:2379 cluster-status", &[]).succeeds();
    status.shows("health: healthy").shows("store: 3 Up");
    // A store that starts anew belongs to the same cluster as before.
    world.unit(cluster.store(2), "restart").succeeds();
    cluster.until_replicated(3);

    for (member, place) in [(2, "127.0.0.12"), (3, "127.0.0.13")] {
        world.on(cluster.pd(member), WIPE).succeeds();
        let add =
            format!("flaredb-client --endpoint http://PD_IP:2379 pd add --node-id {member} --peer-url {place}:2380");
        cluster.line(&add, &[]).succeeds().shows(&format!("member {member} is added"));
        world.start(cluster.pd(member));
        world.until(&format!("member {member} is well"), || {
            let health = cluster.page("health");
            let well = |one: &Value| one["member_id"] == member && one["health"] == true;
            health.as_array().is_some_and(|all| all.len() == member && all.iter().any(well))
        });
    }
    // They vote: the one that was recovered may go.
    world.kill(cluster.pd(1));
    world.until("another member leads", || {
        let page = world.operator("curl -s --max-time 5 http://127.0.0.12:2379/pd/api/v1/stores");
        serde_json::from_str::<Value>(&page.out).is_ok_and(|page| page["count"] == 3)
    });
}

/// A command that docs/ops/flaredb.md has whoever runs the unit give, as it is given on a machine without accounts.
fn taught(command: &str) -> String {
    let user = user_of("placement-driver");
    let line = format!("sudo -u {user} {command}");
    let page = std::fs::read_to_string(repository().join("docs/ops/flaredb.md")).unwrap();
    assert!(page.lines().any(|taught| taught.trim() == line), "`{line}` is not taught");
    format!("setpriv --reuid={user} --regid={user} --clear-groups -- {command}")
}

#[test]
fn a_member_that_lost_its_folder_comes_back_by_itself() {
    let cluster = Cluster::found(3, 1);
    let world = &cluster.world;
    world.kill(cluster.pd(3));
    world.on(cluster.pd(3), WIPE).succeeds();
    world.start(cluster.pd(3));
    world.until("it is well again", || {
        let health = cluster.page("health");
        health.as_array().is_some_and(|all| all.len() == 3 && all.iter().all(|one| one["health"] == true))
    });
    let place = "127.0.0.13";
    let has_records = || cluster.metrics(place).contains("placement_has_leader 1");
    world.until("it knows the leader", has_records);
    world.kill(cluster.pd(2));
    cluster.until_replicated(1);
}
