//! Each checker on a view small enough to see through.

use std::time::Duration;

use crate::small::{GIB, Small, key_in, short};
use base::{GroupId, NodeId, PeerId};
use placement::plan::Round;
use placement::plan::admin::{self, Wanted};
use placement::policy::MIB;
use placement::view::{BeginError, Progress, ReportError, StoreMeta, StoreState};
use placement::{Epoch, Rejected, Step};

/// One region in stores 1 to 5, each in a rack of its own; what is planned for it.
fn check(replicas: &str, wanted: &[&str]) {
    let mut small = Small::new("1:a 2:b 3:c 4:d 5:e");
    small.region(1, replicas, |_| {});
    assert_eq!(small.planned(), wanted, "{replicas}");
}

#[test]
fn replicas_are_completed_spared_and_replaced() {
    check("1* 2 3", &[]);
    check("1* 2 3?", &[]);
    check("1* 2 3-", &[]);
    check("1* 2", &["missing-replica 1: +3 ^3"]);
    check("1*", &["missing-replica 1: +2 ^2"]);
    check("1* 2 3!", &["down-replica 1: +4 ^4 -3"]);
    check("1* 2 3 4", &["surplus-replica 1: -2"]);
    check("1* 2 3 4!", &["surplus-replica 1: -4"]);
    check("1* 2 3 4-", &["surplus-replica 1: -4"]);
}

#[test]
fn nothing_is_planned_without_a_majority_or_a_leader() {
    check("1* 2! 3!", &[]);
    check("1 2 3", &[]);
    let mut small = Small::new("1:a 2:b 3:c 4:d 5:e");
    small.region(1, "1* 2! 3!", |_| {});
    small.region(2, "1 2 3!", |_| {});
    assert_eq!(small.blocked(), [("no-leader", 1), ("no-quorum", 1)]);
}

#[test]
fn learners_left_over_are_used_or_dropped() {
    check("1* 2 3l", &["missing-replica 1: +3 ^3"]);
    check("1* 2 3 4l", &["learner 1: -4"]);
    check("1* 2 3! 4l?", &["down-replica 1: +4 ^4 -3"]);
    check("1* 2 3! 4l!", &["learner 1: -4"]);
    // Only for a minute: it may yet come.
    check("1* 2 3! 4l-", &[]);
}

#[test]
fn a_silent_store_is_replaced_when_its_time_is_up() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    small.region(1, "1* 2 3", |_| {});
    small.later(60, &[3]);
    assert_eq!(small.planned(), [""; 0]);
    small.later(240, &[3]);
    assert_eq!(small.planned(), ["down-replica 1: +4 ^4 -3"]);
    let reason = small.plan().operators[0].reason.clone();
    assert!(reason.starts_with("store 3 is down, silent for 5m0s; store 4: isolation 2"), "{reason}");
}

#[test]
fn a_store_that_lost_its_place_is_replaced_at_once() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    small.region(1, "1* 2 3-", |_| {});
    assert_eq!(small.planned(), [""; 0]);
    let meta = small.view.store(NodeId(3)).unwrap().meta.clone();
    small.view.put_store(StoreMeta { lost: true, state: StoreState::Offline, ..meta }, small.now);
    small.policy.store_remove_limit = 0;
    assert_eq!(small.planned(), ["down-replica 1: +4 ^4 -3"]);
}

#[test]
fn a_replica_that_differs_is_replaced_and_leaves_first_where_there_is_no_other_place() {
    for (stores, replicas, differing, wanted) in [
        ("1:a 2:b 3:c 4:d", "1* 2 3-", 3, &["differing-replica 1: +4 ^4 -3"][..]),
        // It hands over by itself first.
        ("1:a 2:b 3:c 4:d", "1* 2 3", 1, &[]),
        ("1:a 2:b 3:c", "1* 2 3-", 3, &["differing-replica 1: -3"]),
        ("1:a 2:b 3:c", "1* 2? 3-", 3, &[]),
        ("1:a 2:b", "1* 2-", 2, &[]),
    ] {
        let mut small = Small::new(stores);
        small.policy.max_replicas = replicas.split_whitespace().count() as u32;
        small.region(1, replicas, |_| {});
        let peer = small.view.region(GroupId(1)).unwrap().peer(NodeId(differing)).unwrap().id;
        small.view.report_differing(NodeId(differing), [(GroupId(1), peer)].into_iter());
        assert_eq!(small.planned(), wanted, "{replicas} in {stores}");
        // What is told of another peer of the region is over.
        small.view.report_differing(NodeId(differing), [(GroupId(1), PeerId(7))].into_iter());
        assert_eq!(small.planned(), [""; 0]);
    }
}

#[test]
fn a_full_store_takes_no_replica_and_gives_up_what_it_has() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    small.policy.schedulers = [placement::policy::Scheduler::EvictSlowStore].into();
    small.region(1, "1* 2 3!", |_| {});
    small.region(2, "1 2* 3", |_| {});
    small.store(2, |report| report.full = true);
    assert_eq!(small.planned(), ["down-replica 1: +4 ^4 -3", "full-store 2: +4 ^4 >3 -2"]);
    small.store(4, |report| report.full = true);
    assert_eq!(small.planned(), ["evict-slow-store 2: >3"]);
    assert_eq!(small.blocked(), [("no-candidate", 2)]);
}

#[test]
fn an_offline_store_hands_over_before_it_leaves() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    small.region(1, "1* 2 3", |_| {});
    small.state(1, StoreState::Offline);
    assert_eq!(small.planned(), ["offline-replica 1: +4 ^4 >2 -1"]);
    small.policy.store_remove_limit = 0;
    assert_eq!(small.blocked(), [("remove-rate", 1)]);
}

#[test]
fn a_single_replica_moves_with_its_leader() {
    let mut small = Small::new("1:a 2:b");
    small.policy.max_replicas = 1;
    small.region(1, "1*", |_| {});
    small.state(1, StoreState::Offline);
    assert_eq!(small.planned(), ["offline-replica 1: +2 ^2 >2 -1"]);
}

#[test]
fn replicas_move_apart_where_that_is_possible() {
    let mut small = Small::new("1:a 2:a 3:b 4:b 5:c");
    small.region(1, "1 2* 3", |_| {});
    small.region(2, "1* 3 5", |_| {});
    assert_eq!(small.planned(), ["spread 1: +5 ^5 -1"]);
    small.state(5, StoreState::Offline);
    let moved: Vec<_> = small.planned();
    assert_eq!(moved, ["offline-replica 2: +4 ^4 -5"], "of two racks that are left, the emptier store");
}

#[test]
fn stores_that_must_not_take_a_replica_are_passed_over_with_the_reason() {
    let mut small = Small::new("1:a 2:b 3:c 4:d 5:e 6:f 7:g 8:h 9:i");
    small.policy.max_snapshot_count = 5;
    small.region(1, "1* 2", |_| {});
    small.store(3, |report| report.available_bytes = 150 * GIB);
    small.store(4, |report| report.slow = true);
    small.store(5, |report| report.receiving_snapshots = 5);
    small.state(6, StoreState::Offline);
    small.later(30, &[7]);
    small.store(8, |report| report.available_bytes = 199 * GIB);
    let plan = small.plan();
    assert_eq!(plan.operators.iter().map(short).collect::<Vec<_>>(), ["missing-replica 1: +9 ^9"]);
    let text = |Rejected { store, reason }: &Rejected| format!("{store}: {reason}");
    assert_eq!(
        plan.operators[0].rejected.iter().map(text).collect::<Vec<_>>(),
        [
            "1: it holds a replica already",
            "2: it holds a replica already",
            "3: its disk would be 85 % full (low-space-ratio 80 %)",
            "4: its disk is slow",
            "5: 5 snapshots are under way (max-snapshot-count 5)",
            "6: it is Offline",
            "7: it is disconnected, silent for 30s",
            "8: its disk would be 80 % full (low-space-ratio 80 %)",
        ]
    );
}

#[test]
fn limits_hold_across_rounds() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    for id in 1..=40 {
        small.region(id, "1* 2", |_| {});
    }
    assert_eq!(small.plan().operators.len(), 30, "two stores take 15 a minute each");
    small.policy.replica_schedule_limit = 10;
    assert_eq!(small.begin(), 10);
    assert_eq!(small.begin(), 0, "ten are under way");
    assert_eq!(small.blocked(), [("limit", 30)]);
    small.policy.replica_schedule_limit = 64;
    assert_eq!(small.begin(), 20);
    assert_eq!(small.blocked(), [("no-candidate", 10)]);
    small.later(61, &[]);
    assert_eq!(small.plan().operators.len(), 10);
}

#[test]
fn what_is_not_heard_of_is_left_alone() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    small.region(1, "1* 2", |_| {});
    small.now = small.now + Duration::from_secs(181);
    (1..=4).for_each(|store| small.store(store, |_| {}));
    assert_eq!(small.planned(), [""; 0]);
    assert_eq!(small.blocked(), [("stale-report", 1)]);
    assert!(small.view.unchanged(GroupId(1), Epoch { conf_version: 1, version: 1 }, NodeId(1), small.now));
    assert_eq!(small.planned().len(), 1);
    assert!(!small.view.unchanged(GroupId(1), Epoch { conf_version: 1, version: 2 }, NodeId(1), small.now));
}

#[test]
fn a_new_driver_waits_until_it_has_heard_enough() {
    let mut old = Small::new("1:a 2:b 3:c 4:d");
    (1..=20).for_each(|id| old.region(id, "1* 2", |_| {}));
    let mut new = Small::new("1:a 2:b 3:c 4:d");
    let reports: Vec<_> = old.view.regions().map(|region| region.to_report()).collect();
    for report in &reports {
        new.view.restore_region(report.clone()).unwrap();
    }
    assert!(!new.plan().stats.ready);
    for report in &reports[..18] {
        new.view.report_region(report.clone(), new.now).unwrap();
    }
    assert!(new.plan().stats.ready);
    assert_eq!(new.plan().operators.len(), 18);
    assert_eq!(new.blocked(), [("not-reported", 2)]);
}

#[test]
fn splits_are_done_where_the_leader_wants_them() {
    let mut small = Small::new("1:a 2:b 3:c");
    small.region(1, "1* 2 3", |region| region.split_keys = vec![key_in(1, 7), key_in(1, 9)]);
    assert_eq!(small.planned(), ["split 1: split 2"]);
    small.policy.split_schedule_limit = 0;
    assert_eq!(small.planned(), [""; 0]);
}

#[test]
fn a_replica_that_cannot_be_had_keeps_no_region_from_being_cut() {
    let mut small = Small::new("1:a 2:b 3:c");
    small.region(1, "1* 2", |region| region.split_keys = vec![key_in(1, 7)]);
    small.region(2, "1* 2 3!", |region| region.split_keys = vec![key_in(2, 7)]);
    small.store(3, |report| report.slow = true);
    assert_eq!(small.planned(), ["split 1: split 1", "split 2: split 1"]);
    small.region(1, "1* 2", |_| {});
    assert_eq!((small.planned().len(), small.blocked()), (1, vec![("no-candidate", 1)]), "it says what it lacks still");
}

#[test]
fn what_was_cut_for_its_load_is_not_merged_while_it_carries_that() {
    let mut small = Small::new("1:a 2:b 3:c");
    let carrying = |requests: u64| {
        move |region: &mut placement::RegionReport| {
            (region.bytes, region.keys, region.requests_per_sec) = (MIB, 1000, requests);
        }
    };
    small.region(1, "1* 2 3", carrying(800));
    small.region(2, "1* 2 3", carrying(800));
    small.later(3601, &[]);
    assert_eq!(small.planned(), [""; 0], "half of load-split-requests-per-sec");
    small.region(2, "1* 2 3", carrying(600));
    assert_eq!(small.planned(), ["merge 1: merge 2"]);
}

#[test]
fn what_remembers_a_merge_is_not_merged_itself() {
    let mut small = Small::new("1:a 2:b 3:c");
    let little = |remembers: bool| {
        move |region: &mut placement::RegionReport| (region.bytes, region.keys, region.remembers) = (MIB, 10, remembers)
    };
    small.region(1, "1* 2 3", little(true));
    small.region(2, "1* 2 3", little(false));
    small.later(3601, &[]);
    assert_eq!(small.planned(), ["merge 2: merge 1"]);
    small.region(2, "1* 2 3", little(true));
    assert_eq!(small.planned(), [""; 0], "it would refuse");
}

#[test]
fn a_stores_own_limits_count_before_the_policys() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    small.region(1, "1* 2 3", |_| {});
    small.state(3, StoreState::Offline);
    assert_eq!(small.planned(), ["offline-replica 1: +4 ^4 -3"]);
    let limit = |small: &mut Small, id: u64, add_limit, remove_limit| {
        let meta = small.view.store(NodeId(id)).unwrap().meta.clone();
        small.view.put_store(placement::view::StoreMeta { add_limit, remove_limit, ..meta }, small.now);
    };
    limit(&mut small, 4, Some(0), None);
    assert_eq!(small.blocked(), [("no-candidate", 1)]);
    limit(&mut small, 4, None, None);
    limit(&mut small, 3, None, Some(0));
    assert_eq!(small.blocked(), [("remove-rate", 1)]);
    small.policy.store_remove_limit = 0;
    limit(&mut small, 3, None, Some(1));
    assert_eq!(small.planned().len(), 1);
}

#[test]
fn people_are_refused_what_would_be_unsafe() {
    let mut small = Small::new("1:a 2:b 3:c 4:d 5:e");
    small.region(1, "1* 2 3?", |_| {});
    small.state(5, StoreState::Offline);
    let asked = |wanted: Wanted| {
        let mut round = Round::new(&small.view, &small.policy, small.now, 0);
        let region = small.view.region(GroupId(1)).unwrap();
        admin::operator(&mut round, region, &wanted).map_or_else(|why| why.to_string(), |operator| short(&operator))
    };
    let (one, two, three, four, five) = (NodeId(1), NodeId(2), NodeId(3), NodeId(4), NodeId(5));
    assert_eq!(asked(Wanted::TransferLeader { to: two }), "admin 1: >2");
    assert_eq!(asked(Wanted::MovePeer { from: one, to: four }), "admin 1: +4 ^4 >2 -1");
    assert_eq!(asked(Wanted::AddPeer { to: four }), "admin 1: +4 ^4");
    assert_eq!(asked(Wanted::RemovePeer { from: three }), "admin 1: -3");
    assert_eq!(asked(Wanted::Split { keys: vec![key_in(1, 3)] }), "admin 1: split 1");
    for (wanted, why) in [
        (Wanted::TransferLeader { to: three }, "it holds no voter that answers and has caught up"),
        (Wanted::TransferLeader { to: one }, "the leader is in store 1 already"),
        (Wanted::TransferLeader { to: four }, "no replica in store 4; it has some in 1, 2, 3"),
        (Wanted::RemovePeer { from: two }, "would leave 1 healthy voters of 2"),
        (Wanted::AddPeer { to: two }, "it holds a replica already"),
        (Wanted::AddPeer { to: five }, "it is Offline"),
        (Wanted::MovePeer { from: two, to: NodeId(9) }, "there is no store 9"),
        (Wanted::Split { keys: vec![key_in(2, 3)] }, "lie within the region"),
        (Wanted::Split { keys: Vec::new() }, "lie within the region"),
    ] {
        let told = asked(wanted.clone());
        assert!(told.contains(why), "{wanted:?}: {told}");
    }
}

#[test]
fn people_merge_what_lies_side_by_side() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    let with = |bytes: u64| move |region: &mut placement::RegionReport| region.bytes = bytes * MIB;
    small.region(1, "1* 2 3", with(300));
    small.region(2, "1 2 4*", with(200));
    small.region(3, "1* 2 3", with(900));
    let asked = |small: &Small, region: u64, into: u64| {
        let mut round = Round::new(&small.view, &small.policy, small.now, 0);
        let region = small.view.region(GroupId(region)).unwrap();
        let wanted = Wanted::Merge { into: GroupId(into) };
        admin::operator(&mut round, region, &wanted).map_or_else(|why| why.to_string(), |operator| short(&operator))
    };
    assert_eq!(asked(&small, 1, 2), "admin 1: +4 ^4 -3 merge 2", "they need not be small, or have rested");
    assert_eq!(asked(&small, 2, 1), "admin 2: +3 ^3 >2 -4 merge 1");
    for (region, into, why) in [
        (1, 3, "region 1 cannot become part of region 3: it does not lie beside that one; regions beside it: 2"),
        (2, 2, "regions beside it: 1 and 3"),
        (2, 9, "there is no region 9"),
        (2, 3, "together they have 1100 MiB and would be split again: region-split-size is 1024 MiB"),
    ] {
        let told = asked(&small, region, into);
        assert!(told.contains(why), "{told}");
    }
    small.store(4, |report| report.slow = true);
    assert_eq!(asked(&small, 1, 2), "admin 1: +4 ^4 -3 merge 2", "what passes does not stop them");
    small.state(4, StoreState::Offline);
    assert!(asked(&small, 1, 2).contains("region 2 does not have all its replicas"));
    small.state(4, StoreState::Up);
    small.store(4, |_| {});
    small.region(2, "1 2! 4*", with(200));
    assert!(asked(&small, 1, 2).contains("region 2 does not have all its replicas"));
    small.region(2, "1 2 4*", with(200));
    small.region(1, "1* 2 3", |region| region.remembers = true);
    assert!(asked(&small, 1, 2).contains("try again in a minute"));
    small.region(1, "1* 2 3", |region| region.unmeasured = true);
    assert!(asked(&small, 2, 1).contains("region 1 is not measured yet"));
}

#[test]
fn small_regions_join_a_neighbour_when_they_are_at_rest() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    let few =
        |bytes: u64| move |region: &mut placement::RegionReport| (region.bytes, region.keys) = (bytes * MIB, 1000);
    small.region(1, "1* 2 3", few(300));
    small.region(2, "1 2 4*", few(20));
    small.region(3, "1* 2 3", few(200));
    assert_eq!(small.planned(), [""; 0], "they have only just been split");
    small.later(3601, &[]);
    assert_eq!(small.planned(), ["merge 2: +3 ^3 >2 -4 merge 3"]);
    assert_eq!(small.begin(), 1);
    assert!(small.view.is_busy(GroupId(3)));
    let busy = small.plan();
    assert_eq!(busy.operators, []);
    small.view.end(GroupId(2));
    assert!(!small.view.is_busy(GroupId(3)));
    small.region(3, "1* 2 3", few(510));
    small.region(1, "1* 2 3", few(505));
    assert_eq!(small.planned(), [""; 0], "they would soon be split again");
}

#[test]
fn the_view_follows_an_operator_and_refuses_what_is_old() {
    let mut small = Small::new("1:a 2:b 3:c");
    small.region(1, "1* 2", |_| {});
    let mut operator = small.plan().operators.remove(0);
    operator.draw_peers(|| base::PeerId(77));
    assert!(matches!(operator.steps[0], Step::AddLearner { peer: base::PeerId(77), .. }));
    small.view.begin(5, operator.clone(), small.now).unwrap();
    assert_eq!(small.view.begin(6, operator.clone(), small.now), Err(BeginError::Busy(GroupId(1))));
    let mut report = small.view.region(GroupId(1)).unwrap().to_report();
    let hear = |small: &mut Small, report: &placement::RegionReport| {
        small.now = small.now + Duration::from_secs(1);
        small.view.report_region(report.clone(), small.now).unwrap().progress.unwrap()
    };
    report.peers.push(placement::Peer { id: base::PeerId(77), store: NodeId(3), learner: true });
    report.epoch.conf_version = 2;
    report.pending = vec![NodeId(3)];
    assert_eq!(hear(&mut small, &report), Progress::Same, "it has to catch up");
    report.pending.clear();
    assert_eq!(hear(&mut small, &report), Progress::Step(1));
    report.peers[2].learner = false;
    report.epoch.conf_version = 3;
    assert_eq!(hear(&mut small, &report), Progress::Finished);
    assert_eq!(small.view.end(GroupId(1)).unwrap().id, 5);
    assert_eq!(
        small.view.begin(7, operator, small.now),
        Err(BeginError::StaleEpoch { region: GroupId(1), known: report.epoch })
    );
    report.epoch.conf_version = 2;
    let stale = small.view.report_region(report, small.now);
    assert!(matches!(stale, Err(ReportError::StaleEpoch { .. })));
}

#[test]
fn a_region_that_covers_others_takes_their_place_if_it_is_newer() {
    let mut small = Small::new("1:a 2:b 3:c");
    small.region(1, "1* 2 3", |_| {});
    small.region(2, "1* 2 3", |_| {});
    let mut merged = small.view.region(GroupId(1)).unwrap().to_report();
    merged.end = small.view.region(GroupId(2)).unwrap().end.clone();
    let refused = small.view.report_region(merged.clone(), small.now);
    assert!(matches!(refused, Err(ReportError::Overlap { other: GroupId(2), .. })));
    merged.epoch.version = 2;
    let heard = small.view.report_region(merged, small.now).unwrap();
    assert_eq!(heard.replaced.iter().map(|(region, _)| *region).collect::<Vec<_>>(), [GroupId(2)]);
    assert_eq!(small.view.store(NodeId(2)).unwrap().region_count(), 1);
    assert_eq!(small.view.total_bytes(), 512 * MIB);
}
