//! How much the regions of a store carry, as rates; and which of those led here carry so much that they are to be cut.
//!
//! ```text
//!  counters of each region ──every second──▶ rates, in which the past fades (half of it within seven seconds)
//!    above a threshold ─▶ requests are sampled for half of load-split-time ─▶ a cut that divides them, if there is one
//!                      ─▶ sampled for the other half: does it divide these too? ─▶ asked for, and proven again and again
//!    below             ─▶ nothing is sampled, nothing asked for
//! ```
//! Time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use base::rng::mix;
use base::{GroupId, Time};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use proto::placement as pb;

use crate::region::sample::{choose, is_useful};
use crate::region::traffic::{Counts, Traffic};

/// The past counts e times less after this.
const FADES_WITHIN: Duration = Duration::from_secs(10);

/// Shared by all who ask.
#[derive(Default)]
pub struct Load(Mutex<BTreeMap<GroupId, Carried>>);

/// A look at all regions.
pub struct Look<'a> {
    known: MutexGuard<'a, BTreeMap<GroupId, Carried>>,
    limits: pb::LoadSplit,
    now: Time,
}

/// A region as it is looked at.
pub struct Seen<'a> {
    pub id: GroupId,
    pub version: u64,
    pub start: &'a [u8],
    pub led: bool,
    pub traffic: &'a Traffic,
}

struct Carried {
    version: u64,
    counts: Counts,
    at: Time,
    /// Per second.
    rates: [f64; 5],
    watch: Watch,
    looked_at: bool,
}

/// How far the search for a cut is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Watch {
    Idle,
    /// Since when.
    Choosing(Time),
    /// The cut, since when, and whether it has proven itself before.
    Proving(Bytes, Time, bool),
}

impl Load {
    /// Begins a look at all regions of the store. Nothing else is to be asked before its end.
    pub fn observe(&self, limits: pb::LoadSplit, now: Time) -> Look<'_> {
        Look { known: self.0.lock(), limits, now }
    }

    /// Of all regions here together.
    pub fn total(&self) -> pb::Rates {
        let mut total = pb::Rates::default();
        for rates in self.0.lock().values().map(Carried::rates) {
            total.read_bytes += rates.read_bytes;
            total.read_keys += rates.read_keys;
            total.write_bytes += rates.write_bytes;
            total.write_keys += rates.write_keys;
            total.requests += rates.requests;
        }
        total
    }
}

impl Look<'_> {
    /// What the region carries, and where it is to be cut because of that.
    pub fn see(&mut self, seen: &Seen<'_>) -> (pb::Rates, Option<Bytes>) {
        let (counts, now) = (seen.traffic.counts(), self.now);
        let fresh =
            || Carried { version: seen.version, counts, at: now, rates: [0.0; 5], watch: Watch::Idle, looked_at: true };
        let carried = self.known.entry(seen.id).or_insert_with(fresh);
        if carried.version != seen.version {
            // What is left of a region that was cut carries something else.
            seen.traffic.end_samples();
            *carried = fresh();
        }
        carried.looked_at = true;
        carried.advance(counts, now);
        carried.look_for_a_cut(seen, self.limits, now);
        let cut = match &carried.watch {
            Watch::Proving(key, _, true) => Some(key.clone()),
            _ => None,
        };
        (carried.rates(), cut)
    }

    /// Those that were not seen are forgotten.
    pub fn end(mut self) {
        self.known.retain(|_, carried| std::mem::take(&mut carried.looked_at));
    }
}

impl Carried {
    fn advance(&mut self, counts: Counts, now: Time) {
        let seconds = now.since(self.at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let share = 1.0 - (-seconds / FADES_WITHIN.as_secs_f64()).exp();
        let (new, old) = (as_list(counts), as_list(self.counts));
        for (rate, (new, old)) in self.rates.iter_mut().zip(new.into_iter().zip(old)) {
            *rate += share * (new.saturating_sub(old) as f64 / seconds - *rate);
        }
        (self.counts, self.at) = (counts, now);
    }

    fn rates(&self) -> pb::Rates {
        let [read_bytes, read_keys, write_bytes, write_keys, requests] = self.rates.map(|rate| rate.round() as u64);
        pb::Rates { read_bytes, read_keys, write_bytes, write_keys, requests }
    }

    fn look_for_a_cut(&mut self, seen: &Seen<'_>, limits: pb::LoadSplit, now: Time) {
        let rates = self.rates();
        let above = |rate: u64, limit: u64| limit > 0 && rate >= limit;
        let much = above(rates.requests, limits.requests_per_sec)
            || above(rates.read_bytes + rates.write_bytes, limits.bytes_per_sec);
        if !seen.led || !much {
            if self.watch != Watch::Idle {
                seen.traffic.end_samples();
                self.watch = Watch::Idle;
            }
            return;
        }
        let half = Duration::from_millis(limits.time_ms / 2);
        self.watch = match std::mem::replace(&mut self.watch, Watch::Idle) {
            Watch::Idle => {
                seen.traffic.begin_samples(mix(seen.id.0 ^ seen.version));
                Watch::Choosing(now)
            }
            Watch::Choosing(since) if now.since(since) >= half => {
                match choose(&seen.traffic.take_samples(), seen.start) {
                    Some(key) => Watch::Proving(key, now, false),
                    None => Watch::Choosing(now),
                }
            }
            Watch::Proving(key, since, _) if now.since(since) >= half => {
                if is_useful(&seen.traffic.take_samples(), &key) {
                    Watch::Proving(key, now, true)
                } else {
                    Watch::Choosing(now)
                }
            }
            waits => waits,
        };
    }
}

fn as_list(counts: Counts) -> [u64; 5] {
    [counts.read_bytes, counts.read_keys, counts.write_bytes, counts.write_keys, counts.requests]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: pb::LoadSplit = pb::LoadSplit { requests_per_sec: 100, bytes_per_sec: 0, time_ms: 10_000 };

    /// So many seconds of a load, a region of which is led here.
    struct World {
        load: Load,
        traffic: Traffic,
        now: Time,
        written: u64,
        seen: (pb::Rates, Option<Bytes>),
    }

    impl World {
        fn new() -> World {
            let (load, traffic) = (Load::default(), Traffic::default());
            World { load, traffic, now: Time::default(), written: 0, seen: Default::default() }
        }

        fn run(&mut self, seconds: u64, per_second: u64, key: impl Fn(u64) -> u64) {
            for _ in 0..seconds {
                self.now = self.now + Duration::from_secs(1);
                for _ in 0..per_second {
                    self.traffic.write(format!("k{:06}", key(self.written)).as_bytes(), 50);
                    self.written += 1;
                }
                self.look(1, true);
            }
        }

        fn look(&mut self, version: u64, led: bool) {
            let seen = Seen { id: GroupId(1), version, start: b"", led, traffic: &self.traffic };
            let mut look = self.load.observe(LIMITS, self.now);
            self.seen = look.see(&seen);
            look.end();
        }

        fn rates(&self) -> pb::Rates {
            self.seen.0
        }

        fn cut(&self) -> Option<Bytes> {
            self.seen.1.clone()
        }
    }

    #[test]
    fn rates_follow_the_load_and_fade() {
        let mut world = World::new();
        world.run(1, 0, |_| 0);
        world.run(60, 80, |number| number);
        let rates = world.rates();
        assert_eq!((rates.write_keys, rates.requests, rates.write_bytes), (80, 80, 3990), "{rates:?}");
        assert_eq!(world.load.total(), rates);
        world.run(10, 0, |_| 0);
        assert_eq!(world.rates().write_keys, 29);
        world.load.observe(LIMITS, world.now).end();
        assert_eq!(world.load.total(), pb::Rates::default(), "a region that is gone is forgotten");
    }

    #[test]
    fn a_lasting_load_that_can_be_divided_asks_for_a_cut() {
        let mut world = World::new();
        world.run(10, 400, |number| number * 37 % 1000);
        assert_eq!(world.cut(), None, "it does not last yet");
        world.run(10, 400, |number| number * 37 % 1000);
        let cut = world.cut().expect("it lasts");
        assert!((&b"k000300"[..]..&b"k000700"[..]).contains(&&cut[..]), "{cut:?}");
        world.run(30, 0, |_| 0);
        assert_eq!(world.cut(), None, "the load is gone");
    }

    fn never_cut(per_second: u64, key: fn(u64) -> u64) {
        let mut world = World::new();
        for _ in 0..60 {
            world.run(1, per_second, key);
            assert_eq!(world.cut(), None);
        }
    }

    #[test]
    fn a_light_load_a_hot_key_and_keys_that_only_grow_ask_for_none() {
        never_cut(50, |number| number * 37 % 1000);
        never_cut(400, |_| 7);
        never_cut(400, |number| number);
    }

    #[test]
    fn who_leads_no_more_or_has_been_cut_begins_anew() {
        let mut world = World::new();
        world.run(20, 400, |number| number * 37 % 1000);
        world.look(1, false);
        assert_eq!(world.cut(), None);
        world.run(20, 400, |number| number * 37 % 1000);
        assert!(world.cut().is_some());
        world.look(2, true);
        assert_eq!((world.rates().requests, world.cut()), (0, None));
    }
}
