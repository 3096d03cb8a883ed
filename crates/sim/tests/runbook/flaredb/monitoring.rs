//! Monitoring & Alerts: the metrics that the runbook's queries and alerts ask for, on the pages of real processes. (The
//! alerts themselves are tested with the rules that are shipped.)

use super::book::monitoring;
use super::cluster::Cluster;

#[test]
fn every_metric_of_the_queries_is_there_and_moves() {
    let cluster = Cluster::found(1, 3);
    let world = &cluster.world;
    let pd = cluster.metrics(cluster.pd_ip());
    for name in monitoring::EXPRESSIONS.iter().flat_map(|expression| names(expression)) {
        assert!(has(&pd, &name), "{name} is not on the page of the placement driver:\n{pd}");
    }
    for name in monitoring::OF_PD {
        assert!(has(&pd, name), "{name} is not on the page of the placement driver:\n{pd}");
    }
    for store in 1..=3 {
        assert_eq!(sample(&pd, &format!("flaredb_store_state{{store_id=\"{store}\"}}")), 1.0);
        assert_eq!(sample(&pd, &format!("flaredb_store_regions{{store_id=\"{store}\"}}")), 1.0);
    }
    assert_eq!((sample(&pd, "flaredb_pending_peers"), sample(&pd, "placement_regions")), (0.0, 1.0));

    let leader = cluster.leader();
    let page = cluster.metrics(cluster.store_ip(leader));
    for name in monitoring::OF_STORES {
        assert!(has(&page, name), "{name} is not on the page of the leader:\n{page}");
    }
    assert_eq!((sample(&page, "flaredb_regions"), sample(&page, "flaredb_region_leaders")), (1.0, 1.0));

    // Queries per store.
    let requests = |method: &str| {
        let page = cluster.metrics(cluster.store_ip(leader));
        sample(&page, &format!("flaredb_requests_total{{method=\"{method}\",code=\"OK\"}}"))
    };
    let before = requests("Put");
    cluster.fill(leader, 0..50, 10);
    assert_eq!(requests("Put"), before + 50.0);
    let page = cluster.metrics(cluster.store_ip(leader));
    assert!(sample(&page, "flaredb_request_duration_seconds_count{method=\"Put\"}") >= 50.0);
    assert!(sample(&page, "flaredb_log_entries_written_total") >= 50.0);

    // FlareDBStoreDown: it is the placement driver that tells, and the store's own page is gone.
    cluster.set_policy(r#"{"store-disconnected-time": "3s"}"#);
    let gone = leader % 3 + 1;
    world.kill(cluster.store(gone));
    let state = format!("flaredb_store_state{{store_id=\"{gone}\"}}");
    world.until("the store's state is 0", || sample(&cluster.metrics(cluster.pd_ip()), &state) == 0.0);
    let pd = cluster.metrics(cluster.pd_ip());
    assert!(sample(&pd, &format!("flaredb_store_heartbeat_age_seconds{{store_id=\"{gone}\"}}")) >= 3.0);
    assert_eq!(sample(&pd, "placement_stores{state=\"disconnected\"}"), 1.0);
    world.operator(&format!("curl -sS http://{}:2379/metrics", cluster.store_ip(gone))).fails();
    world.until("its followers are missed", || {
        let page = cluster.metrics(cluster.store_ip(leader));
        sample(&page, &format!("flaredb_raft_follower_silent_regions{{peer=\"{gone}\"}}")) == 1.0
    });
}

fn has(page: &str, name: &str) -> bool {
    page.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
}

/// The value of the series that is written so.
fn sample(page: &str, series: &str) -> f64 {
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {series} in\n{page}"))
}

/// Names of our metrics in an expression.
fn names(expression: &str) -> Vec<String> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("flaredb_")).map(str::to_owned).collect()
}
