//! What all groups of a host have together, so that bounds hold however many there are. Only the host's turns change it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Totals {
    groups: AtomicU64,
    /// Bytes of entries in memory.
    cached: AtomicUsize,
    proposals: AtomicUsize,
    proposal_bytes: AtomicUsize,
}

impl Totals {
    pub fn set_groups(&self, groups: usize) {
        self.groups.store(groups as u64, Ordering::Relaxed);
    }

    /// A group's share of what all may have.
    pub fn share_of(&self, all: u64) -> u64 {
        all / self.groups.load(Ordering::Relaxed).max(1)
    }

    /// A group has kept `before` bytes of entries in memory, and keeps `after`.
    pub fn cached(&self, before: usize, after: usize) {
        change(&self.cached, before, after);
    }

    pub fn cached_bytes(&self) -> usize {
        self.cached.load(Ordering::Relaxed)
    }

    /// A group has had so many proposals of so many bytes, and has `after`.
    pub fn proposed(&self, before: (usize, usize), after: (usize, usize)) {
        change(&self.proposals, before.0, after.0);
        change(&self.proposal_bytes, before.1, after.1);
    }

    /// How many proposals are open, and their bytes.
    pub fn proposals(&self) -> (usize, usize) {
        (self.proposals.load(Ordering::Relaxed), self.proposal_bytes.load(Ordering::Relaxed))
    }
}

fn change(total: &AtomicUsize, before: usize, after: usize) {
    if after >= before {
        total.fetch_add(after - before, Ordering::Relaxed);
    } else {
        total.fetch_sub(before - after, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use base::{ClusterId, GroupId, NodeId, PeerId, Time};
    use bytes::Bytes;
    use storage::LogStore as _;
    use storage::memlog::MemLog;

    use crate::{CreateGroup, Host, HostConfig, Input, Mark, Member, Membership, Output, Refusal};

    const GROUPS: u64 = 20;
    const COMMAND_BYTES: usize = 1000;

    /// A host of many groups, each with one voter.
    fn host(change: impl Fn(&mut HostConfig)) -> (Host, Arc<MemLog>) {
        let store = Arc::new(MemLog::new());
        let mut config = HostConfig::new(NodeId(1), 3);
        change(&mut config);
        let mut host = Host::new(config, store.clone(), Time::ZERO);
        let create = |group: u64| {
            let member = Member { node: NodeId(1), peer: PeerId(100 + group), ..Member::default() };
            let membership = Membership::founding(ClusterId(1), vec![member]);
            let mark = Mark { index: 1, term: 1, hash: 0 };
            Input::Create(CreateGroup {
                group: GroupId(group),
                peer: PeerId(100 + group),
                mark,
                membership: membership.into(),
                fresh: true,
            })
        };
        let outputs = host.turn(Time::ZERO, (1..=GROUPS).map(create).collect());
        carry_out(&mut host, &store, outputs);
        (host, store)
    }

    /// How many proposals were refused, all of them because there were too many.
    fn carry_out(host: &mut Host, store: &MemLog, outputs: Vec<Output>) -> usize {
        carry_out_at(Time::ZERO, host, store, outputs)
    }

    fn carry_out_at(now: Time, host: &mut Host, store: &MemLog, mut outputs: Vec<Output>) -> usize {
        let mut refused = 0;
        while !outputs.is_empty() {
            let mut inputs = Vec::new();
            for output in outputs.drain(..) {
                match output {
                    Output::Persist { number, batch } => {
                        store.write(&batch).unwrap();
                        inputs.push(Input::Persisted { number });
                    }
                    Output::Committed { group, last, .. } => {
                        inputs.push(Input::Applied { group, index: last, hashes: Vec::new() });
                    }
                    Output::Refused { seqs, why, .. } => {
                        assert_eq!(why, Refusal::Busy);
                        refused += seqs.len();
                    }
                    _ => {}
                }
            }
            if inputs.is_empty() {
                break;
            }
            outputs = host.turn(now, inputs);
        }
        refused
    }

    fn propose(group: u64, seq: u64) -> Input {
        let command = Bytes::from(vec![7; COMMAND_BYTES]);
        Input::Propose { group: GroupId(group), seq, command, deadline: Time::from_millis(60_000) }
    }

    #[test]
    fn entries_in_memory_are_bounded_for_all_groups_together() {
        let most = 8 * COMMAND_BYTES;
        let (mut host, store) = host(|config| config.cache_bytes_max_all = most);
        for seq in 0..200 {
            let outputs = host.turn(Time::ZERO, vec![propose(1 + seq % GROUPS, seq)]);
            assert_eq!(carry_out(&mut host, &store, outputs), 0);
            assert!(host.totals.cached_bytes() <= most + 2 * COMMAND_BYTES, "{}", host.totals.cached_bytes());
        }
        assert!(host.totals.cached_bytes() > 0);
        let destroyed = (1..=GROUPS).map(|group| Input::Destroy { group: GroupId(group) }).collect();
        let outputs = host.turn(Time::ZERO, destroyed);
        carry_out(&mut host, &store, outputs);
        assert_eq!((host.totals.cached_bytes(), host.totals.proposals()), (0, (0, 0)));
    }

    #[test]
    fn groups_that_fall_asleep_keep_no_entries_in_memory() {
        let after = Duration::from_millis(500);
        let (mut host, store) = host(|config| config.sleep_after = Some(after));
        for seq in 0..200 {
            let outputs = host.turn(Time::ZERO, vec![propose(1 + seq % GROUPS, seq)]);
            carry_out(&mut host, &store, outputs);
        }
        let mut now = Time::ZERO;
        while now < Time::ZERO + 10 * after {
            assert!(host.totals.cached_bytes() >= 200 * COMMAND_BYTES || now >= Time::ZERO + after);
            now = host.next_turn().max(now + Duration::from_millis(1)).min(now + after);
            let outputs = host.turn(now, Vec::new());
            carry_out_at(now, &mut host, &store, outputs);
        }
        assert_eq!(host.totals.cached_bytes(), 0);
        // Whatever is written to them then is kept as before.
        let outputs = host.turn(now, vec![propose(1, 200)]);
        carry_out_at(now, &mut host, &store, outputs);
        assert!((COMMAND_BYTES..2 * COMMAND_BYTES).contains(&host.totals.cached_bytes()));
    }

    #[test]
    fn open_proposals_are_bounded_for_all_groups_together() {
        let (mut host, store) = host(|config| config.proposals_max = 5);
        let all = (0..GROUPS).map(|seq| propose(1 + seq, seq)).collect();
        let outputs = host.turn(Time::ZERO, all);
        assert_eq!(carry_out(&mut host, &store, outputs), GROUPS as usize - 5);
        assert_eq!(host.totals.proposals(), (0, 0), "all of them are committed");
        let outputs = host.turn(Time::ZERO, vec![propose(3, 100)]);
        assert_eq!(carry_out(&mut host, &store, outputs), 0);
    }

    /// Few entries are not cut, small as they are; large ones are, however few.
    #[test]
    fn the_log_is_kept_by_its_bytes_as_well() {
        for (entry_bytes, kept) in [(10, 100), (COMMAND_BYTES, 40)] {
            let (mut host, store) = host(|config| {
                config.log_entries_kept = 1600;
                config.log_bytes_kept = 40 * COMMAND_BYTES as u64;
            });
            let mut last = 0;
            for seq in 0..100 {
                let command = Bytes::from(vec![7; entry_bytes]);
                let deadline = Time::from_millis(1000);
                let outputs = host.turn(Time::ZERO, vec![Input::Propose { group: GroupId(1), seq, command, deadline }]);
                carry_out(&mut host, &store, outputs);
                last = store.state(GroupId(1)).unwrap().last;
                host.turn(Time::ZERO, vec![Input::Durable { group: GroupId(1), index: last }]);
            }
            let outputs = host.turn(Time::ZERO, vec![propose(1, 100)]);
            carry_out(&mut host, &store, outputs);
            let start = store.state(GroupId(1)).unwrap().start.index;
            let are_kept = last - start;
            assert!((kept..=kept + kept / 4 + 2).contains(&are_kept), "{are_kept} of {entry_bytes} bytes each");
        }
    }

    #[test]
    fn a_groups_share_of_the_log_falls_with_their_number() {
        let totals = super::Totals::default();
        assert_eq!(totals.share_of(1 << 20), 1 << 20);
        totals.set_groups(16);
        assert_eq!(totals.share_of(1 << 20), 1 << 16);
    }
}
