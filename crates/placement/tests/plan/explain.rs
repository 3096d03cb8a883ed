//! What people are told is what is planned.

use std::collections::BTreeSet;

use base::{GroupId, NodeId};
use placement::explain::forecast::{self, RemovalRefused};
use placement::explain::{region, store};
use placement::view::StoreState;
use placement::{Policy, Scheduler, Step};

use crate::small::{GIB, Small, short};

fn of_region(small: &Small, id: u64) -> region::RegionExplanation {
    region::explain(&small.view, &small.policy, GroupId(id), small.now).unwrap()
}

#[test]
fn a_region_that_can_be_helped() {
    let mut small = Small::new("1:a 2:b 3:c 4:d 5:c");
    small.region(1, "1* 2 3!", |_| {});
    small.store(5, |report| report.slow = true);
    let told = of_region(&small, 1);
    assert_eq!(told.next.as_ref().map(short).into_iter().collect::<Vec<_>>(), small.planned());
    assert_eq!(told.lacks.as_deref(), Some("the replica in store 3 has not answered its leader for 10m0s"));
    assert_eq!(told.blocker, None);
    let text = told.to_string();
    for line in [
        "region 1 at epoch 1/1, 512 MiB",
        "wanted: 3 voters, apart by rack",
        "has: leader in store 1 [a], isolation 2: well",
        "has: voter in store 3 [c], isolation 2: no answer to the leader for 10m0s",
        "candidates for the place of the replica in store 3:",
        "  store 1: no, it holds a replica already",
        "  store 4: fits, isolation 2, score 0 MiB",
        "  store 5: no, its disk is slow",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\nis not in\n{text}");
    }
    let json = serde_json::to_value(&told).unwrap();
    assert_eq!(json["candidates"][4]["reason"], "its disk is slow");
    assert_eq!(json["next"]["steps"][0], serde_json::json!({"step": "add-learner", "store": 4, "peer": "0"}));
    assert_eq!(json["next"]["cause"], "down-replica");
}

#[test]
fn a_region_that_cannot() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    small.region(1, "1* 2 3!", |_| {});
    small.region(2, "1* 2! 3!", |_| {});
    small.store(4, |report| report.available_bytes = 10 * GIB);
    let told = of_region(&small, 1);
    assert!(told.next.is_none() && small.planned().is_empty());
    let blocker = told.blocker.unwrap().to_string();
    assert!(blocker.starts_with("no store can take the replica:"), "{blocker}");
    assert!(blocker.contains("store 4: its disk would be 99 % full (low-space-ratio 80 %)"), "{blocker}");
    let told = of_region(&small, 2).blocker.unwrap().to_string();
    assert_eq!(told, "only 1 of 3 voters answer: without a majority nothing can be changed");
    assert!(region::explain(&small.view, &small.policy, GroupId(9), small.now).is_none());
}

#[test]
fn an_operator_under_way_is_shown() {
    let mut small = Small::new("1:a 2:b 3:c");
    small.region(1, "1* 2", |_| {});
    small.begin();
    small.later(40, &[]);
    let told = of_region(&small, 1);
    let flight = told.under_way.as_ref().unwrap();
    assert_eq!((flight.step, flight.running_s, flight.without_progress_s), (0, 40, 40));
    assert!(told.to_string().contains("at: add a learner in store 3\n"), "{told}");
    assert!(small.view.stuck(&small.policy, small.now).next().is_none());
    small.later(600, &[]);
    assert_eq!(small.view.stuck(&small.policy, small.now).count(), 1);
    small.view.note_progress(GroupId(1), small.now);
    assert_eq!(small.view.stuck(&small.policy, small.now).count(), 0);
}

/// Every store that a plan chooses is a candidate that fits, and every store that it passed over does not.
#[test]
fn plans_and_explanations_agree() {
    for seed in 0..60 {
        let mut rng = base::Rng::new(seed);
        let mut small = Small::new("1:a 2:a 3:b 4:b 5:c 6:c 7:d 8:d");
        small.policy.max_snapshot_count = 3;
        for id in 1..=8 {
            let (slow, receiving) = (rng.percent(20), rng.below(5) as u32);
            let available = rng.between(100, 900) * GIB;
            small.store(id, |report| {
                (report.slow, report.receiving_snapshots, report.available_bytes) = (slow, receiving, available);
            });
            if rng.percent(20) {
                small.state(id, StoreState::Offline);
            }
        }
        let mut stores: Vec<u64> = (1..=8).collect();
        let mut words = Vec::new();
        for index in 0..rng.between(2, 5) {
            let store = stores.remove(rng.below(stores.len() as u64) as usize);
            let mark = if index == 0 { "*" } else { ["", "", "", "!", "-", "?", "l"][rng.below(7) as usize] };
            words.push(format!("{store}{mark}"));
        }
        small.region(1, &words.join(" "), |_| {});
        let plan = small.plan();
        let told = of_region(&small, 1);
        assert_eq!(told.next.as_ref(), plan.operators.first(), "seed {seed}: {words:?}");
        let held_up = told.lacks.is_some() && told.blocker.is_some();
        assert_eq!(held_up, !plan.stats.blocked.is_empty(), "seed {seed}: {words:?}\n{told}");
        let Some(operator) = plan.operators.first() else { continue };
        let fits: BTreeSet<_> = told.candidates.iter().filter(|line| line.fits).map(|line| line.store).collect();
        for step in &operator.steps {
            if let Step::AddLearner { store, peer } = step
                && peer.is_none()
            {
                assert!(fits.contains(&store.0), "seed {seed}: {operator}\n{told}");
            }
        }
        for rejected in &operator.rejected {
            let line = told.candidates.iter().find(|line| line.store == rejected.store.0).unwrap();
            assert_eq!(line.reason.as_deref(), Some(&*rejected.reason.to_string()), "seed {seed}");
        }
    }
}

#[test]
fn a_store_that_does_not_drain_says_why() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    (1..=3).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    small.region(4, "1* 2 3!", |_| {});
    small.state(3, StoreState::Offline);
    small.store(4, |report| report.available_bytes = 10 * GIB);
    let told = store::explain(&small.view, &small.policy, NodeId(3), small.now).unwrap();
    let draining = told.draining.as_ref().unwrap();
    assert_eq!((draining.replicas_left, draining.movable, draining.eta_seconds), (4, 0, None));
    assert_eq!(
        draining.blocked.iter().map(|kind| (kind.blocker, kind.regions)).collect::<Vec<_>>(),
        [("no-candidate", 4)]
    );
    assert_eq!(told.against_replicas, ["it is Offline"]);
    assert!(told.to_string().contains("drains, because it is going offline: 4 replicas left"), "{told}");
    small.store(4, |_| {});
    let told = store::explain(&small.view, &small.policy, NodeId(3), small.now).unwrap();
    let draining = told.draining.as_ref().unwrap();
    // 15 a minute, of 4.
    assert_eq!((draining.movable, draining.eta_seconds), (4, Some(16)));
    assert!(told.to_string().contains("4 movable, about 16s"), "{told}");
    let full = store::explain(&small.view, &small.policy, NodeId(1), small.now).unwrap();
    assert_eq!(full.balance, "balance-region-scheduler is off");
    small.policy.schedulers = Scheduler::ALL.into();
    let empty = store::explain(&small.view, &small.policy, NodeId(4), small.now).unwrap();
    assert_eq!(empty.balance, "below the average: takes replicas, at the pace of its limits");
}

#[test]
fn removal_is_refused_when_too_few_would_remain() {
    let mut small = Small::new("1:a 2:b 3:c 4:d");
    (1..=30).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    let may = |small: &Small, id| forecast::may_remove(&small.view, &small.policy, NodeId(id), small.now);
    assert_eq!(may(&small, 3), Ok(()));
    let told = forecast::remove_store(&small.view, &small.policy, NodeId(3), small.now).unwrap();
    assert_eq!((told.replicas, told.bytes, told.targets), (30, 15 * GIB, 3));
    assert_eq!(told.blocked, []);
    // The bytes would take 51 s of three stores' snapshots; 15 a minute from the one take longer.
    assert_eq!((told.estimate.seconds, told.estimate.bound_by), (120, "store-remove-limit"));

    small.store(4, |report| report.available_bytes = 10 * GIB);
    let told = forecast::remove_store(&small.view, &small.policy, NodeId(3), small.now).unwrap();
    let refused = told.refused.as_ref().unwrap().to_string();
    assert_eq!(
        refused,
        "too few stores would remain: 2 that can hold replicas, 3 are needed (max-replicas); add a store first; \
         store 4 does not count, its disk would be 99 % full (low-space-ratio 80 %)"
    );
    assert_eq!(told.blocked[0].regions, 30);
    assert_eq!(may(&small, 4), Ok(()), "it holds nothing");
    assert_eq!(may(&small, 9), Err(RemovalRefused::Unknown(NodeId(9))));
    serde_json::to_value(&told).unwrap();
}

#[test]
fn a_change_of_policy_is_counted_before_it_is_made() {
    let mut small = Small::new("1:a 2:b 3:c 4:d 5:e");
    (1..=10).for_each(|id| small.region(id, "1* 2 3", |_| {}));
    let ask = |small: &Small, new: &Policy| forecast::change_policy(&small.view, &small.policy, new, small.now);
    let five = Policy { max_replicas: 5, ..small.policy.clone() };
    let told = ask(&small, &five);
    assert_eq!(told.changed, ["max-replicas"]);
    assert_eq!((told.replicas, told.bytes, told.regions["missing-replica"]), (20, 10 * GIB, 10));
    assert_eq!(told.blocked, []);
    let seven = Policy { max_replicas: 7, ..small.policy.clone() };
    let told = ask(&small, &seven);
    assert_eq!((told.checked, told.blocked.len()), (10, 0), "the next replica has a place, the seventh has none");
    let one = Policy { max_replicas: 1, ..small.policy.clone() };
    let told = ask(&small, &one);
    assert_eq!((told.replicas, told.regions["surplus-replica"]), (0, 10));
    assert_eq!(told.estimate.to_string(), "nothing to do");
}
