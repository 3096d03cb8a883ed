//! The placement driver's pages and programs, as the runbook asks them.

use serde_json::Value;

use crate::cluster::{Cluster, Process, put};

/// The runbook's search for full disks.
const FULL: &str = ".stores[] | select((.available / .capacity) < 0.1)";

/// A page, as the runbook has it asked with jq.
fn asked(pd: &Process, path: &str, filter: &str) -> String {
    let line = format!("curl -s {}/pd/api/v1/{path} | jq -c '{filter}'", pd.url());
    let output = std::process::Command::new("bash").args(["-c", &line]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runbooks_lines_work() {
    let mut cluster = Cluster::start(3, 3).await;
    let said = cluster.until_well(1).await;
    assert!(said.contains("health: healthy"), "{said}");
    for store in 1..=3 {
        assert!(said.contains(&format!("store: {store} Up")), "{said}");
    }
    // Whoever is asked, store or placement driver.
    let (done, said) = cluster.client(&cluster.stores[0], &["put", "test-key", "hello"]);
    assert!(done, "{said}");
    for process in cluster.stores.iter().chain(&cluster.pd) {
        assert_eq!(cluster.client(process, &["get", "test-key"]), (true, "hello\n".to_owned()), "{}", process.name);
    }
    assert_eq!(cluster.client(&cluster.stores[2], &["get", "none"]), (false, String::new()));

    // Any member answers, and what it says can be asked with the runbook's jq.
    for pd in &cluster.pd {
        let ask = |path: &str, filter: &str| asked(pd, path, filter);
        assert_eq!(ask("stores", ".stores[] | .id"), "1\n2\n3\n");
        assert_eq!(ask("stores", ".stores[] | select(.state!=\"Up\")"), "");
        assert_eq!(ask("stores", FULL), "");
        assert_eq!(ask("stats/region", "[.count, .pending_peers]"), "[1,0]\n");
        assert_eq!(ask("operators", "."), "[]\n");
        assert!(ask("config/schedule", ".schedulers").contains("balance-leader"));
        let posted = "curl -s -X POST URL/pd/api/v1/config/schedule -d '{\"max-snapshot-count\": 5, \"max-pending-peer-count\": 16}'";
        let line = posted.replace("URL", &pd.url());
        assert!(std::process::Command::new("bash").args(["-c", &line]).status().unwrap().success());
        assert_eq!(ask("config/schedule", ".\"max-snapshot-count\""), "5\n");
        assert!(ask("nothing", ".error").contains("there is no GET nothing"));
        assert!(ask("region/id/x", ".error").contains("a number is wanted"));
        assert!(ask("store/9", ".error").contains("there is no store 9"));
    }
}

/// Without its leader, and with another one that has heard nothing yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_placement_driver_survives_its_leader() {
    let mut cluster = Cluster::start(3, 3).await;
    let members = cluster.page("members").await.unwrap();
    let leader = members["leader"]["member_id"].as_u64().unwrap() as usize - 1;
    cluster.pd[leader].kill();
    cluster.until("another member leads and has heard the stores", async |cluster| cluster.has_replicas(3).await).await;
    let page = cluster.page("stores").await.unwrap();
    assert_eq!(page["count"], 3);
    cluster.pd[leader].spawn();
    cluster
        .until("the member is back", async |cluster| {
            let health = cluster.page("health").await.unwrap_or_default();
            health.as_array().is_some_and(|all| all.len() == 3 && all.iter().all(|one| one["health"] == true))
        })
        .await;
}

/// A store that is down, and a leader of the placement driver that has never heard of it: its disk is not known, and not full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_never_heard_of_is_not_called_full() {
    let mut cluster = Cluster::start(3, 3).await;
    cluster.stores[2].kill();
    let members = cluster.page("members").await.unwrap();
    let leader = members["leader"]["member_id"].as_u64().unwrap() as usize - 1;
    cluster.pd[leader].kill();
    none_is_full(&mut cluster, (leader + 1) % 3).await;
    // And when all of them have begun anew.
    cluster.pd[leader].spawn();
    for pd in &mut cluster.pd {
        pd.kill();
        pd.spawn();
    }
    none_is_full(&mut cluster, leader).await;
}

/// Looks for full disks, from the moment that a member knows a leader until that one has heard the two stores that run.
async fn none_is_full(cluster: &mut Cluster, member: usize) {
    cluster
        .until("the leader has heard the stores that run", async |cluster| {
            let page = rpc::client::page(&cluster.pd[member].url(), "/pd/api/v1/stores", None).await;
            let page: Value = serde_json::from_slice(&page.unwrap_or_default()).unwrap_or_default();
            let stores = page["stores"].as_array().cloned().unwrap_or_default();
            let number = |store: &Value, name: &str| store[name].as_u64().unwrap_or(0);
            for store in &stores {
                assert!(number(store, "available") * 10 >= number(store, "capacity"), "{store}");
            }
            let is_heard = |store: &&Value| store["last_heartbeat_unix_seconds"].is_u64();
            stores.len() == 3 && stores.iter().filter(is_heard).count() == 2
        })
        .await;
    let pd = &cluster.pd[member];
    assert_eq!(asked(pd, "stores", FULL), "");
    assert_eq!(asked(pd, "store/3", "[.capacity, .available, .last_heartbeat_unix_seconds]"), "[1,1,null]\n");
}

/// A store whose configuration names one member of the placement driver learns of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_finds_the_members_that_it_was_not_told_of() {
    let mut cluster = Cluster::start(3, 2).await;
    let third = cluster.add_store_that_knows(3, 1);
    cluster.stores[third].spawn();
    let places = cluster.data_dir(&cluster.stores[third]).join("stores");
    let members =
        || std::fs::read_to_string(&places).unwrap_or_default().lines().filter(|line| line.starts_with("pd ")).count();
    cluster.until("it has heard of all members", async |_| members() == 3).await;

    cluster.pd[0].kill();
    let heard = async |cluster: &Cluster| -> u64 {
        cluster.page("store/3").await.and_then(|store| store["last_heartbeat_unix_seconds"].as_u64()).unwrap_or(0)
    };
    cluster.until("the others lead", async |cluster| heard(cluster).await > 0).await;
    let before = heard(&cluster).await;
    cluster.until("the others hear of it", async |cluster| heard(cluster).await > before + 2).await;

    // Also when it starts anew.
    cluster.stores[third].stop().await;
    cluster.stores[third].spawn();
    let before = heard(&cluster).await;
    cluster.until("it registers with one that it learnt of", async |cluster| heard(cluster).await > before + 2).await;
    put(&mut cluster.raw(third).await, "k", "v").await.unwrap();
}
