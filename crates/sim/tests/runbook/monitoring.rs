//! Monitoring & Alerts: the metrics that the runbook's queries and alerts ask for, on /metrics of real nodes. (The alerts
//! themselves are tested with the rules that are shipped.)

use crate::book::monitoring;
use crate::world::World;

#[test]
fn every_metric_of_the_queries_is_there_and_moves() {
    let world = World::found(3);
    let leader = world.leader();
    let follower = leader % 3 + 1;
    let before = sample(&scrape(&world, leader), "chainfire_raft_index{role=\"leader\"}");
    world
        .operator("for i in $(seq 20); do chainfire-client --endpoint http://node1:2379 put key-$i value; done")
        .succeeds();
    let pages = [1, 2, 3].map(|node| scrape(&world, node));
    let all = pages.concat();
    for name in monitoring::EXPRESSIONS.iter().flat_map(|expression| names(expression)) {
        assert!(all.lines().any(|line| line.starts_with(&name)), "{name} is on no page");
    }
    for name in monitoring::KEY_METRICS {
        assert!(pages.iter().all(|page| page.contains(&format!("\nchainfire_{name}"))), "{name} is not on every page");
    }
    let page = scrape(&world, leader);
    assert!(sample(&page, "chainfire_raft_index{role=\"leader\"}") >= before + 20.0, "it advances steadily");
    assert!(page.contains("chainfire_write_duration_seconds_bucket{le=\"0.5\"}"), "the alert's bound is a bucket");
    let buckets = page.lines().filter(|line| line.starts_with("chainfire_write_duration_seconds_bucket{le=\"0.00"));
    assert!(buckets.count() >= 5, "fine buckets below 10 ms");
    assert!(pages.iter().map(|page| sample(page, "chainfire_write_duration_seconds_count")).sum::<f64>() >= 20.0);
    // The runbook subtracts series whose labels differ, which is nothing at all; the lag is a series of its own.
    assert!(sample(&scrape(&world, follower), "chainfire_raft_index{role=\"follower\"}") > 0.0);
    assert!(page.matches("\nchainfire_raft_follower_lag_entries{peer=").count() >= 2, "{page}");

    // `raft_term` is stable, and ChainfireNoLeader fires when it should: not while there is a leader.
    assert!(pages.iter().all(|page| sample(page, "chainfire_has_leader") == 1.0));
    let term = sample(&page, "chainfire_raft_term");
    assert!(pages.iter().all(|page| sample(page, "chainfire_raft_term") == term));
    let others: Vec<usize> = (1..=3).filter(|node| *node != follower).collect();
    others.iter().for_each(|node| world.kill(*node));
    world.until("chainfire_has_leader is 0", || sample(&scrape(&world, follower), "chainfire_has_leader") == 0.0);
    // ChainfireNodeDown: `up` is Prometheus's own word for a page that cannot be had.
    world.operator(&format!("curl -sS http://node{}:2379/metrics", others[0])).fails();
}

/// The buckets of `chainfire_write_duration_seconds`, as they are at a moment.
pub struct Writes(Vec<(f64, f64)>);

impl Writes {
    pub fn of(world: &World, node: usize) -> Writes {
        let page = scrape(world, node);
        let buckets = page.lines().filter_map(|line| {
            let (bound, count) =
                line.strip_prefix("chainfire_write_duration_seconds_bucket{le=\"")?.split_once("\"} ")?;
            // `+Inf` is a number, too.
            Some((bound.parse().ok()?, count.parse().ok()?))
        });
        Writes(buckets.collect())
    }

    /// What the runbook's query and its alert compute of two such moments:
    /// `histogram_quantile(0.99, rate(chainfire_write_duration_seconds_bucket[…]))`, in seconds.
    pub fn p99_since(&self, before: &Writes) -> f64 {
        let more: Vec<(f64, f64)> = self.0.iter().zip(&before.0).map(|(now, then)| (now.0, now.1 - then.1)).collect();
        let rank = 0.99 * more.last().expect("there are buckets").1;
        let at = more.iter().position(|(_, count)| *count >= rank).expect("the last bucket counts all");
        let below = at.checked_sub(1).map_or((0.0, 0.0), |below| more[below]);
        let (bound, count) = more[at];
        // Beyond the last bound nobody knows more.
        if bound.is_infinite() { below.0 } else { below.0 + (bound - below.0) * (rank - below.1) / (count - below.1) }
    }
}

fn scrape(world: &World, node: usize) -> String {
    world.operator(&format!("curl -sS --fail http://node{node}:2379/metrics")).succeeds().out
}

/// The value of the series that is written so.
fn sample(page: &str, series: &str) -> f64 {
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {series} in\n{page}"))
}

/// Names of our metrics in an expression.
fn names(expression: &str) -> Vec<String> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("chainfire_")).map(str::to_owned).collect()
}
