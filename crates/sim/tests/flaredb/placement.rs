//! The placement driver's pages and programs, as the runbook asks them.

use crate::cluster::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runbooks_lines_work() {
    let cluster = Cluster::start(3, 3).await;
    let (healthy, said) = cluster.client(&cluster.pd[1], &["cluster-status"]);
    assert!(healthy && said.contains("health: healthy"), "{said}");
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
        let ask = |path: &str, filter: &str| {
            let line = format!("curl -s {}/pd/api/v1/{path} | jq -c '{filter}'", pd.url());
            let output = std::process::Command::new("bash").args(["-c", &line]).output().unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(ask("stores", ".stores[] | .id"), "1\n2\n3\n");
        assert_eq!(ask("stores", ".stores[] | select(.state!=\"Up\")"), "");
        assert_eq!(ask("stores", ".stores[] | select((.available / .capacity) < 0)"), "");
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
