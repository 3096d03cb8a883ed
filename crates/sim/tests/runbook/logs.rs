//! Log Analysis: each search of the runbook finds the event that it is meant to find.

use crate::book::logs;
use crate::world::World;

#[test]
fn every_search_finds_its_event() {
    let world = World::found(3);
    let leader = world.leader();
    let (stopped, slow) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    world.on(leader, logs::LEADER_CHANGES).succeeds().shows("INFO chainfire_raft: Leader elected, term=");

    // A node is gone: errors of connections, counted by their code, and a follower that is behind.
    world.kill(stopped);
    let puts =
        format!("for i in $(seq 10); do chainfire-client --endpoint http://node{leader}:2379 put key-$i value; done");
    world.operator(&puts).succeeds();
    let error =
        format!("ERROR chainfire_network: Failed to connect to peer, addr=node{stopped}:2380: connection refused");
    world.until("the search for errors finds it", || world.on(leader, logs::ERRORS).out.contains(&error));
    world.on(leader, logs::COUNT_ERRORS).succeeds().shows("code=CF3001");
    world.on(leader, logs::CONNECTION_ERRORS).succeeds().shows("connection refused");
    let behind = format!("A follower is behind, node={stopped} lag=");
    world.until("the search for lag finds it", || world.on(leader, logs::LAG).out.contains(&behind));
    world.start(stopped);
    world.until_said(leader, &format!("A follower has caught up, node={stopped}"));

    // Both followers stand still for a moment: a put takes as long.
    let put = format!("chainfire-client --endpoint http://node{leader}:2379 put slow value");
    world.until("a put is slow", || {
        [stopped, slow].iter().for_each(|node| world.signal(*node, "SIGSTOP"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(400));
                let go_on = format!("ssh node{stopped} 'systemctl kill -s SIGCONT chainfire'; ssh node{slow} 'systemctl kill -s SIGCONT chainfire'");
                world.operator(&go_on).succeeds();
            });
            // The leader may be another one by then.
            let _ = world.operator(&put);
        });
        (1..=3).any(|node| world.on(node, logs::SLOW).out.contains("Slow request, method=Put latency="))
    });
    let said: String = (1..=3).map(|node| world.journal(node)).collect();
    assert!(said.contains("INFO chainfire_api: Handled put request, latency="), "what a healthy node says");
}
