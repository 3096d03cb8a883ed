//! Each scheduler on a view small enough to see through.

use crate::small::{GIB, Small, short};
use base::NodeId;
use placement::policy::MIB;
use placement::{RegionReport, Scheduler};

fn with(scheduler: Scheduler, stores: &str) -> Small {
    let mut small = Small::new(stores);
    small.policy.schedulers = [scheduler].into();
    small
}

#[test]
fn leaders_go_where_there_are_few() {
    let mut small = with(Scheduler::BalanceLeader, "1:a 2:b 3:c");
    (1..=6).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    let plan = small.plan();
    assert_eq!(plan.operators.len(), 4, "leader-schedule-limit");
    assert!(plan.operators.iter().all(|operator| short(operator).starts_with("balance-leader")));
    assert_eq!(plan.operators[0].reason, "store 1 has 6 leaders, store 2 has 0");
    let after = |to: &str| plan.operators.iter().filter(|operator| short(operator).ends_with(to)).count();
    assert_eq!((after(">2"), after(">3")), (2, 2), "what is planned counts at once");
    small.begin();
    small.policy.leader_schedule_limit = 100;
    assert_eq!(small.planned(), [""; 0], "two each, once they are through");
}

#[test]
fn a_paused_scheduler_rests() {
    let mut small = with(Scheduler::BalanceLeader, "1:a 2:b 3:c");
    (1..=6).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    small.policy.paused_schedulers = [(Scheduler::BalanceLeader, 1000)].into();
    assert_eq!(small.planned(), [""; 0]);
    small.policy.end_pauses(1000);
    assert_eq!(small.planned().len(), 4);
}

#[test]
fn requests_make_a_region_hot_however_small_they_are() {
    let mut small = with(Scheduler::BalanceHotRegion, "1:a 2:b 3:c");
    (1..=2).for_each(|id| warm(&mut small, id, "1* 2 3", |region| region.requests_per_sec = 2000));
    assert_eq!(small.planned(), ["hot-region 2: >2"]);
    let mut small = with(Scheduler::BalanceHotRegion, "1:a 2:b 3:c");
    (1..=2).for_each(|id| warm(&mut small, id, "1* 2 3", |region| region.requests_per_sec = 200));
    assert_eq!(small.planned(), [""; 0]);
}

#[test]
fn leaders_keep_away_from_stores_that_give_them_up_or_are_slow() {
    let mut small = with(Scheduler::BalanceLeader, "1:a 2:b 3:c");
    (1..=6).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    small.policy.evict_leader_stores = [2].into();
    small.store(3, |report| report.slow = true);
    assert_eq!(small.planned(), [""; 0]);
    small.store(3, |_| {});
    assert!(small.planned().iter().all(|operator| operator.ends_with(">3")));
}

#[test]
fn weights_count() {
    let mut small = with(Scheduler::BalanceLeader, "1:a 2:b 3:c");
    (1..=4).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    (5..=6).for_each(|id| small.region(id, "1 2* 3", |_| {}));
    (7..=8).for_each(|id| small.region(id, "1 2 3*", |_| {}));
    assert_eq!(small.planned().len(), 1);
    let meta = small.view.store(NodeId(1)).unwrap().meta.clone();
    small.view.put_store(placement::view::StoreMeta { leader_weight: 2.0, ..meta }, small.now);
    assert_eq!(small.planned(), [""; 0], "four leaders of weight 2 weigh as much as two");
}

#[test]
fn replicas_go_where_there_is_room_and_not_closer_together() {
    let mut small = with(Scheduler::BalanceRegion, "1:a 2:b 3:c 4:c");
    (1..=8).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    let planned = small.planned();
    assert!(!planned.is_empty());
    // Store 4 shares a rack with store 3: only what lies there may come.
    assert!(planned.iter().all(|operator| operator.contains("+4 ^4 -3")), "{planned:?}");
    small.begin();
    assert_eq!(small.planned(), [""; 0], "what is under way counts");
}

#[test]
fn a_difference_of_little_is_left_alone() {
    let mut small = with(Scheduler::BalanceRegion, "1:a 2:b 3:c 4:d");
    (1..=2).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    small.region(3, "1* 2 4", |_| {});
    small.region(4, "1* 3 4", |_| {});
    assert_eq!(small.planned(), [""; 0], "4, 3, 3 and 2 replicas");
    small.region(5, "1* 2 3", |_| {});
    assert_eq!(small.planned().len(), 1, "5, 4, 4 and 2");
}

#[test]
fn a_disk_that_fills_weighs_more() {
    let mut small = with(Scheduler::BalanceRegion, "1:a 2:b 3:c 4:d");
    small.policy.leader_schedule_limit = 0;
    (1..=12).for_each(|id| small.region(id, ["1* 2 3", "2* 3 4", "3* 4 1", "4* 1 2"][id as usize % 4], |_| {}));
    assert_eq!(small.planned(), [""; 0]);
    small.store(1, |report| report.available_bytes = 210 * GIB);
    let planned = small.planned();
    assert!(!planned.is_empty() && planned.iter().all(|operator| operator.ends_with("-1")), "{planned:?}");
}

/// Reports three times, which is what makes a region hot.
fn warm(small: &mut Small, id: u64, replicas: &str, change: impl Fn(&mut RegionReport)) {
    (0..3).for_each(|_| small.region(id, replicas, &change));
}

#[test]
fn hot_regions_are_led_apart() {
    let mut small = with(Scheduler::BalanceHotRegion, "1:a 2:b 3:c");
    (1..=20).for_each(|id| small.region(id, "2* 1 3", |_| {}));
    let reads = |region: &mut RegionReport| region.read_bytes_per_sec = 50 * MIB;
    warm(&mut small, 21, "1* 2 3", reads);
    assert_eq!(small.planned(), [""; 0], "a single one is hot wherever it is");
    warm(&mut small, 22, "1* 2 3", reads);
    assert_eq!(small.planned(), ["hot-region 22: >2"]);
    small.policy.schedulers.insert(Scheduler::BalanceLeader);
    let planned = small.planned();
    assert!(planned.iter().all(|operator| !operator.starts_with("balance-leader 2")), "{planned:?}");
}

#[test]
fn regions_that_are_written_much_do_not_share_a_disk() {
    let mut small = with(Scheduler::BalanceHotRegion, "1:a 2:b 3:c 4:a 5:b 6:c");
    (1..=20).for_each(|id| small.region(id, "4* 5 6", |_| {}));
    let writes = |region: &mut RegionReport| region.write_bytes_per_sec = 50 * MIB;
    warm(&mut small, 21, "1* 2 3", writes);
    warm(&mut small, 22, "1 2* 3", writes);
    let planned = small.planned();
    assert!(planned.iter().any(|operator| operator.starts_with("hot-region 22: +")), "{planned:?}");
    assert!(planned.len() <= 4);
}

#[test]
fn leaders_leave_a_slow_store_but_not_when_all_are_slow() {
    let mut small = with(Scheduler::EvictSlowStore, "1:a 2:b 3:c");
    (1..=3).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    assert_eq!(small.planned(), [""; 0]);
    small.store(1, |report| report.slow = true);
    let mut planned = small.planned();
    planned.sort();
    assert_eq!(planned.len(), 3);
    assert!(planned[0].starts_with("evict-slow-store 1: >"), "{planned:?}");
    small.store(2, |report| report.slow = true);
    assert_eq!(small.planned(), [""; 0]);
}

#[test]
fn leaders_leave_where_people_say_so() {
    let mut small = Small::new("1:a 2:b 3:c");
    (1..=3).for_each(|id| small.region(id, "1* 2 3-", |_| {}));
    small.policy.evict_leader_stores = [1].into();
    let mut planned = small.planned();
    planned.sort();
    assert_eq!(planned, ["evict-leader 1: >2", "evict-leader 2: >2", "evict-leader 3: >2"]);
    small.policy.evict_leader_stores = [1, 2].into();
    assert_eq!(small.blocked(), [("no-leader-candidate", 3)]);
}
