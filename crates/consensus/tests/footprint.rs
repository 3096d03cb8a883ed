//! What a group that has nothing to do costs in memory: a node may have ten thousand. Every allocation is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use consensus::{CreateGroup, Host, HostConfig, Input, Mark, Member, Membership, Output, Role};
use storage::LogStore as _;
use storage::memlog::MemLog;

const NODES: [u64; 3] = [1, 2, 3];
const GROUPS: u64 = 1_000;
/// Of the group, the raft crate's node, its log in memory (all of which is counted here, where a real one is on disk) and what the host
/// remembers of it. Seen: 7.3 KiB.
const BYTES_MAX: isize = 8 << 10;

/// By size class of 16 bytes, how many are there.
static LIVE: [AtomicIsize; 4096] = [const { AtomicIsize::new(0) }; 4096];

struct Counting;

fn class(bytes: usize) -> &'static AtomicIsize {
    &LIVE[bytes.div_ceil(16).min(LIVE.len() - 1)]
}

// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        class(layout.size()).fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        class(layout.size()).fetch_sub(1, Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn live() -> Vec<isize> {
    LIVE.iter().map(|class| class.load(Ordering::Relaxed)).collect()
}

struct World {
    now: Time,
    logs: Vec<Arc<MemLog>>,
    hosts: Vec<(Host, Vec<Input>)>,
}

impl World {
    fn new(groups: u64) -> World {
        let now = Time::from_millis(5_000);
        let logs: Vec<Arc<MemLog>> = NODES.iter().map(|_| Arc::new(MemLog::new())).collect();
        let host = |node: u64| {
            let sleep_after = Some(Duration::from_millis(500));
            let config = HostConfig { sleep_after, cache_bytes_max: 64 << 10, ..HostConfig::new(NodeId(node), node) };
            let peer = |node: u64, group: u64| PeerId(group * 10 + node);
            let create = |group: u64| {
                let member = |node| Member { node: NodeId(node), peer: peer(node, group), ..Member::default() };
                Input::Create(CreateGroup {
                    group: GroupId(group),
                    peer: peer(node, group),
                    mark: Mark { index: 1, term: 1, hash: 0 },
                    membership: Membership::founding(ClusterId(1), NODES.map(member).to_vec()).into(),
                    fresh: true,
                })
            };
            let log = logs[node as usize - 1].clone();
            (Host::new(config, log, now), (1..=groups).map(create).collect())
        };
        let hosts = NODES.map(host).into();
        World { now, logs, hosts }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now + Duration::from_millis(10);
            while self.hosts.iter().any(|(host, inbox)| !inbox.is_empty() || host.next_turn() <= self.now) {
                (0..self.hosts.len()).for_each(|at| self.turn(at));
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let (host, inbox) = &mut self.hosts[at];
        let inputs = std::mem::take(inbox);
        for output in host.turn(self.now, inputs) {
            match output {
                Output::Persist { number, batch } => {
                    self.logs[at].write(&batch).unwrap();
                    self.hosts[at].1.push(Input::Persisted { number });
                }
                Output::Send { to, message } => self.hosts[to.0 as usize - 1].1.push(Input::Message(message)),
                Output::Committed { group, last, .. } => {
                    self.hosts[at].1.push(Input::Applied { group, index: last, hashes: Vec::new() });
                }
                _ => {}
            }
        }
        if self.hosts[at].1.is_empty() {
            self.hosts[at].1 = Vec::new();
        }
    }
}

#[test]
fn a_sleeping_group_takes_a_few_kibibytes() {
    let mut empty = World::new(1);
    empty.run(5_000);
    let before = live();
    let mut world = World::new(GROUPS);
    world.run(5_000);
    let led = (1..=GROUPS).filter(|group| {
        let leads = |(host, _): &(Host, _)| host.status(GroupId(*group)).is_some_and(|it| it.role == Role::Leader);
        world.hosts.iter().any(leads)
    });
    assert_eq!(led.count() as u64, GROUPS);
    let groups = (GROUPS * NODES.len() as u64) as isize;
    let by_class: BTreeMap<usize, isize> =
        live().iter().zip(before).map(|(now, then)| now - then).enumerate().collect();
    let bytes: isize = by_class.iter().map(|(class, count)| *class as isize * 16 * count).sum();
    let each = bytes / groups;
    println!("figure: a sleeping group takes {each} bytes");
    for (class, count) in by_class.iter().filter(|(class, count)| **class as isize * 16 * **count > groups * 64) {
        println!(
            "{:>8} bytes each: {:>6} x {:.2} = {}",
            class * 16,
            count,
            *count as f64 / groups as f64,
            class * 16 * *count as usize / groups as usize
        );
    }
    assert!(each <= BYTES_MAX, "{each}");
}
