//! The synthetic cluster of `scale`, small.

use placement::Policy;
use placement::policy::MIB;
use placement::scale::{Shape, World};

/// 50 stores in 10 racks, 5,000 regions, five stores still empty; then a rack is lost.
#[test]
fn fifty_stores_become_even_and_survive_a_rack() {
    let shape = Shape {
        stores: 50,
        racks: 10,
        regions: 5_000,
        empty_stores: 5,
        region_bytes: 96 * MIB,
        capacity_bytes: 200_000 * MIB,
        seed: 3,
    };
    let mut world =
        World::build(&shape, Policy { store_add_limit: 120, store_remove_limit: 120, ..Policy::for_scale() });
    let mut most_judged = 0;
    let figures = world.run_until_quiet(1_000, |world| {
        let plan = world.plan();
        most_judged = most_judged.max(plan.stats.judged);
        plan
    });
    assert!(figures.quiet, "{figures:?}");
    // A tenth of 15,000 replicas has to move; some move for what was drawn unevenly.
    assert!((1_350..3_000).contains(&figures.replicas_moved), "{figures:?}");
    let spread = world.spread();
    assert!(spread.bytes.1 - spread.bytes.0 < spread.bytes.1 / 10, "{spread:?}");
    assert!(spread.leaders.1 - spread.leaders.0 <= 4, "{spread:?}");

    let rack = world.rack(4);
    world.kill(&rack);
    let lost = world.lost_replicas() as u64;
    let figures = world.run_until(200, World::plan, |world| world.lost_replicas() == 0);
    assert!(figures.quiet, "{figures:?}");
    assert!((lost..lost + lost / 2).contains(&figures.replicas_moved), "{lost} lost, {figures:?}");
    assert!(figures.rounds < 60, "30 rounds are max-store-down-time: {figures:?}");
    assert!(world.run_until_quiet(1_000, World::plan).quiet);
}

/// The same seed gives the same history.
#[test]
fn a_world_can_be_run_again() {
    let shape = Shape { stores: 12, racks: 4, regions: 300, empty_stores: 2, ..Shape::default() };
    let run = || {
        let mut world = World::build(&shape, Policy::for_scale());
        let mut history = Vec::new();
        for round in 0..60 {
            if round == 20 {
                world.kill(&world.rack(2));
            }
            let plan = world.plan();
            history.extend(plan.operators.iter().map(ToString::to_string));
            world.begin(plan);
            world.tick();
        }
        (history, world.spread())
    };
    assert_eq!(run(), run());
}
